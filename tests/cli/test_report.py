"""`costprof report`: a page and its numbers, or one line and nothing written."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import Run, runner

from costprof.core.expert import ExpertClass, Kernel, class_id
from costprof.core.work import op_work
from costprof.profiler.dataset import write_measurements
from costprof.profiler.public import ingest_public_file

EXPERT = ExpertClass(d_model=64, d_ff=128, dtype="float32")
KERNEL = Kernel(name="kernels:expert", framework="torch")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a runner of `costprof report`."""
    return runner(monkeypatch, capfd, "report")


def measurement(tokens: int, **other: Any) -> dict[str, Any]:
    work = op_work(EXPERT, "expert", tokens)
    latency = 5.0 + work.bytes / 8e3 + work.flops / 50e3
    return {
        **EXPERT.to_dict(),
        "class_id": class_id(EXPERT, "expert", KERNEL, "cold"),
        "op": "expert",
        "kernel": KERNEL.name,
        "kernel_source_hash": "",
        "framework": KERNEL.framework,
        "config": "{}",
        "cache_state": "cold",
        "tokens": tokens,
        "status": "ok",
        "latency_us_p05": 0.95 * latency,
        "latency_us_p50": latency,
        "latency_us_p95": 1.1 * latency,
        "n": 20,
        "num_threads": 1,
        "device_kind": "cpu",
        "device_name": "known CPU",
        **other,
    }


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Six token counts of one class, without energy."""
    folder = tmp_path / "ds"
    write_measurements(folder, "run", [measurement(n) for n in (1, 2, 4, 8, 16, 32)])
    return folder


def test_it_writes_a_page_and_prints_its_numbers(dataset: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "new" / "report.html"
    code, printed, errors = run(dataset, "--out", out, "--json")
    assert (code, errors) == (0, "")
    assert out.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    said = json.loads(printed)
    assert (said["out"], said["split"]) == (str(out), "token")
    assert said["facts"]["Rows"] == "6 used, 0 of them noisy; 0 failed or unusable"
    figures = said["sections"][0]["figures"]
    assert set(figures) == {
        *("errors", "residuals", "error-by-tokens", "calibration", "coverage-by-tokens"),
        *("roofline", "surface-shape"),
    }
    page = out.read_bytes()
    code, printed, _ = run(dataset, "--out", out, "--force")
    assert (code, printed) == (0, f"{out}: 7 figures, 0.0 MB; open it in a browser\n")
    assert out.read_bytes() == page


@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [
        ("missing", 2, "there is no folder"),
        ("empty", 5, "holds no measurements; there is nothing to read"),
        ("failed", 5, "has no usable expert and 0 whole layers of named routing; no report was"),
        ("split", 2, "--split 'tokens' is unknown; no report was made; use token, shape, sparse:F"),
        ("shape", 2, "--split shape with a dataset of single experts; no report was made"),
        ("exists", 2, "exists; it was not overwritten; use --force or another name"),
        ("folder", 2, "is a folder; no report was made; name a file with --out"),
        ("unwritable", 2, "cannot be written"),
        ("damaged", 5, "is damaged"),
        ("devices", 5, "was measured on 2 devices (known CPU, other CPU)"),
    ],
)
def test_bad_input_is_one_line(
    kind: str, code: int, words: str, dataset: Path, tmp_path: Path, run: Run
) -> None:
    out, folder, more = tmp_path / "out.html", dataset, []
    if kind in ("missing", "empty"):
        folder = tmp_path / kind
    if kind == "empty":
        folder.mkdir()
    if kind == "failed":
        folder = tmp_path / "other"
        write_measurements(folder, "run", [measurement(1, status="failed", latency_us_p50=None)])
    if kind in ("split", "shape"):
        more = ["--split", "tokens" if kind == "split" else "shape"]
    if kind == "exists":
        out.write_text("mine")
    if kind == "folder":
        out.mkdir()
    if kind == "unwritable":
        (tmp_path / "file").write_text("")
        out = tmp_path / "file" / "out.html"
    if kind == "damaged":
        (folder / "measurements" / "run.parquet").write_bytes(b"PAR1 no more")
    if kind == "devices":
        write_measurements(folder, "more", [measurement(64, device_name="other CPU")])
    found, printed, errors = run(folder, "--out", out, *more)
    assert (found, printed) == (code, "")
    assert words in errors
    assert errors.count("\n") == 1
    if kind == "exists":
        assert out.read_text() == "mine"
    elif kind != "folder":
        assert not out.exists()
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.slow
def test_public_layers_from_a_file_to_a_page(tmp_path: Path, run: Run) -> None:
    rows, draw = [], random.Random(0)
    for hidden, inner, experts in ((2048, 768, 128), (4096, 1536, 64), (3072, 1024, 32)):
        for tp in (1, 2):
            for routing in ("balanced", "power_law_1.2"):
                for exponent in range(24):
                    tokens = round(2 ** (exponent / 2))
                    size = min(8 * tokens, experts) * 6.0 * hidden * inner / tp
                    flops = 48.0 * tokens * hidden * inner / tp
                    bound_us = math.hypot(flops / 500e6, size / 4e6)
                    latency_us = (20.0 + bound_us) * draw.lognormvariate(0.0, 0.02)
                    rows.append(
                        {
                            "framework": "VLLM",
                            "version": "0.22.0",
                            "device": "NVIDIA H200",
                            "op_name": "moe",
                            "kernel_source": "fused_moe",
                            "moe_dtype": "bfloat16",
                            "num_tokens": tokens,
                            "hidden_size": hidden,
                            "inter_size": inner,
                            "topk": 8,
                            "num_experts": experts,
                            "moe_tp_size": tp,
                            "moe_ep_size": 1,
                            "distribution": routing,
                            "latency": latency_us / 1e3,
                            "power": 300.0 + 20.0 * math.log2(tokens),
                            "power_limit": 700.0,
                        }
                    )
    source = tmp_path / "moe.parquet"
    pq.write_table(pa.Table.from_pylist(rows), source)
    ingest_public_file(source, tmp_path / "h200")
    out = tmp_path / "report.html"
    code, printed, errors = run(tmp_path / "h200", "--out", out, "--split", "sparse:0.75", "--json")
    assert (code, errors) == (0, "")
    figures = json.loads(printed)["sections"][0]["figures"]
    errors_of = {tuple(row[:2]): row[3] for row in figures["errors"]["rows"]}
    assert errors_of["latency, all", "costprof"] < 10.0
    assert "drivers-latency" in figures
    assert out.stat().st_size < 1e6
