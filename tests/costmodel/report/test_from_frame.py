"""A report from the frame of an evaluation is the layers' part of a dataset's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import Run, runner

from costprof.core.device import DeviceFingerprint
from costprof.costmodel.devices import spec_for
from costprof.costmodel.evaluation.origin import ORIGIN_KEY, FrameOrigin
from costprof.costmodel.report.from_frame import frame_report, read_frame
from costprof.costmodel.report.layer_section import layer_section
from costprof.costmodel.report.page import render_page

ORIGIN = FrameOrigin(
    dataset="h200",
    device="NVIDIA H200",
    layers=500,
    dtypes=("bfloat16",),
    energy_sources=("power_samples",),
)


@pytest.fixture(scope="module")
def frame(layer_frame: Callable[..., pa.Table]) -> pa.Table:
    return ORIGIN.attached(layer_frame())


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a runner of `costprof report`."""
    return runner(monkeypatch, capfd, "report")


def write(folder: Path, frame: pa.Table) -> Path:
    path = folder / "frame.parquet"
    pq.write_table(frame, path)
    return path


def test_the_page_has_all_of_the_layers_and_says_what_it_lacks(
    frame: pa.Table, tmp_path: Path, read_page: Any
) -> None:
    report = frame_report(read_frame(write(tmp_path, frame)), "frame")
    spec = spec_for(DeviceFingerprint(kind="gpu", name="NVIDIA H200", power_limit_w=700.0))
    assert report.title == "h200"
    assert report.sections == [layer_section(frame, ORIGIN, spec)]
    page = read_page(render_page(report))
    for text in ("NVIDIA H200", f"{frame.num_rows} held-out layers of 500", "vllm 0.22.0"):
        assert text in page.said("dd")
    for title in ("Roofline", "Residuals", "Energy against latency"):
        assert title in page.said("h3")
    said = " ".join(page.said("li"))
    assert "measured: mean power of samples times latency" in said
    assert f"{frame.num_rows // 6} rows whose power was sampled too shortly" in said
    assert "What only the dataset has is left out: single experts, rows that failed" in said
    assert "roofline is left out" not in said


@pytest.mark.parametrize("text", [None, b"{}", b"[", b'{"device": 3}'])
def test_a_frame_that_names_no_device_has_no_roofline(
    frame: pa.Table, tmp_path: Path, read_page: Any, text: bytes | None
) -> None:
    unnamed = frame.replace_schema_metadata(None if text is None else {ORIGIN_KEY: text})
    report = frame_report(read_frame(write(tmp_path, unnamed)), "a frame")
    page = read_page(render_page(report))
    assert "a frame" in page.said("h1")
    assert "not known" in page.said("dd")
    assert "Roofline" not in page.said("h3")
    assert "Residuals" in page.said("h3")
    said = " ".join(page.said("li"))
    assert "the roofline is left out as well" in said
    assert "Energy and power: of a source that is not known." in said


def test_the_command_makes_the_same_page_each_time(
    frame: pa.Table, tmp_path: Path, run: Run
) -> None:
    path, out = write(tmp_path, frame), tmp_path / "new" / "page.html"
    code, printed, errors = run("--frame", path, "--out", out, "--json")
    assert (code, errors) == (0, "")
    said = json.loads(printed)
    assert (said["frame"], said["title"]) == (str(path), "h200")
    assert [section["title"] for section in said["sections"]] == ["Whole layers"]
    page = out.read_bytes()
    assert run("--frame", path, "--out", out, "--force").returncode == 0
    assert out.read_bytes() == page


def without(frame: pa.Table, name: str) -> pa.Table:
    return frame.drop_columns([name])


def replaced(frame: pa.Table, name: str, values: list[Any]) -> pa.Table:
    return frame.set_column(frame.column_names.index(name), name, pa.array(values))


BAD: dict[str, tuple[Callable[[pa.Table], pa.Table | bytes | None], list[str], str]] = {
    "missing": (lambda _: None, [], "there is no file"),
    "damaged": (lambda _: b"PAR1 no more", [], "cannot be read as Parquet"),
    "other": (lambda _: pa.table({"a": [1]}), [], "has no column 'split'"),
    "column": (lambda f: without(f, "boosting_us"), [], "has no column 'boosting_us'"),
    "empty": (lambda f: f.slice(0, 0), [], "has no rows"),
    "type": (lambda f: replaced(f, "tokens", ["x"] * len(f)), [], "column 'tokens' of "),
    "list": (lambda f: replaced(f, "kernel", [[1]] * len(f)), [], "column 'kernel' of "),
    "null": (
        lambda f: replaced(f, "latency_us", [None, *[1.0] * (len(f) - 1)]),
        [],
        "has rows without a usable latency_us",
    ),
    "zero": (
        lambda f: replaced(f, "latency_us_p05", [0.0] * len(f)),
        [],
        "without a usable latency_us_p05",
    ),
    "split": (lambda f: f, ["--split", "token"], "--frame with --split; no report was made"),
    "dataset": (lambda f: f, ["somewhere"], "--frame with a dataset; no report was made"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_frames_are_one_line(name: str, frame: pa.Table, tmp_path: Path, run: Run) -> None:
    make, more, words = BAD[name]
    made, path, out = make(frame), tmp_path / "frame.parquet", tmp_path / "page.html"
    if isinstance(made, bytes):
        path.write_bytes(made)
    elif made is not None:
        write(tmp_path, made)
    code, printed, errors = run("--frame", path, "--out", out, *more)
    assert (code, printed) == (2, "")
    assert words in errors
    assert errors.count("\n") == 1
    assert not out.exists()


def test_a_report_is_of_something(tmp_path: Path, run: Run) -> None:
    code, _, errors = run("--out", tmp_path / "page.html")
    assert (code, errors.count("\n")) == (2, 1)
    assert "neither a dataset nor --frame was given" in errors
