"""`costprof table diff` at the command line: what it prints, and the exit codes bisecting needs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Run, runner

from costprof.core.device import DeviceFingerprint
from costprof.core.expert import ExpertClass, Kernel
from costprof.costmodel.manifest import Manifest
from costprof.costmodel.rows import TableRow, rows_table
from costprof.costmodel.tablefile import write_table

DEVICE = DeviceFingerprint(kind="cpu", name="known CPU", units=4)
GRID = (1, 2, 4, 8, 16, 32)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Return a maker of tables of one curve, `factor` times as slow as the first."""

    def write(
        name: str, factor: float = 1.0, *, d_ff: int = 128, device: DeviceFingerprint = DEVICE
    ) -> Path:
        rows = [
            TableRow(
                expert=ExpertClass(d_model=64, d_ff=d_ff, dtype="float32"),
                kernel=Kernel(name="kernels:expert", framework="torch"),
                tokens=tokens,
                latency_us=(0.97 * latency, latency, 1.03 * latency),
                energy_mj=(0.9 * latency, latency, 1.1 * latency),
            )
            for tokens in GRID
            for latency in [(10.0 + tokens) * factor]
        ]
        path = tmp_path / f"{name}.parquet"
        write_table(path, rows_table(rows), Manifest(device=device, moes=()))
        return path

    return write


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a runner of `costprof table diff`."""
    return runner(monkeypatch, capfd, "table", "diff")


def test_a_table_of_slower_rows_ends_with_1_and_says_which(
    run: Run, make: Callable[..., Path]
) -> None:
    code, printed, errors = run(make("a"), make("b", 1.5))
    assert (code, errors) == (1, "")
    assert printed.startswith("slower: 1 curve\n  x1.500  ")
    assert "expert 64x128 swiglu float32, cold, kernels:expert" in printed
    assert "at 6 of 6 token counts (1 … 32), most at " in printed
    assert printed.endswith("beyond 5 % and chance: B is worse\n")


def test_the_same_and_a_faster_one_end_with_0(run: Run, make: Callable[..., Path]) -> None:
    code, printed, _ = run(make("a"), make("b", 0.5))
    assert (code, printed.splitlines()[0]) == (0, "faster: 1 curve")
    code, printed, _ = run(make("a"), make("c"), "--json")
    said = json.loads(printed)
    assert (code, said["worse"], len(said["curves"])) == (0, False, 1)
    assert said["curves"][0]["latency_us"]["ratio"] == 1.0
    assert [each["tokens"] for each in said["curves"][0]["latency_us_by_tokens"]] == list(GRID)
    assert run(make("a"), make("d", 1.5), "--threshold", "0.6")[0] == 0


def test_what_differs_in_the_device_is_said(run: Run, make: Callable[..., Path]) -> None:
    newer = dataclasses.replace(DEVICE, driver="570")
    _, printed, _ = run(make("a"), make("b", device=newer))
    assert "measured differently: driver none, now 570\n" in printed


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("device", "was measured on known CPU, the other on other CPU; what differs may be"),
        ("rows", "the tables have no rows in common; they cannot be compared"),
        ("missing", "there is no file"),
        ("damaged", "cannot be read as Parquet"),
        ("threshold", "the threshold is -1.0; nothing was compared"),
    ],
)
def test_what_cannot_be_told_ends_with_125(
    run: Run, kind: str, words: str, make: Callable[..., Path], tmp_path: Path
) -> None:
    other = dataclasses.replace(DEVICE, name="other CPU")
    after = {
        "device": lambda: make("b", 1.5, device=other),
        "rows": lambda: make("b", d_ff=256),
        "missing": lambda: tmp_path / "no.parquet",
        "damaged": lambda: _damaged(make("b")),
        "threshold": lambda: make("b"),
    }[kind]()
    more = ["--threshold", "-1"] if kind == "threshold" else []
    code, printed, errors = run(make("a"), after, *more)
    assert (code, printed) == (125, "")
    assert words in errors
    assert errors.count("\n") == 1
    if kind == "device":
        assert run(make("a"), after, "--allow-device-mismatch")[0] == 1


def test_a_fault_of_our_own_ends_with_125_too(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from costprof.cli.table_diff import diff
    from costprof.costmodel import tablefile

    def fail(path: Path) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(tablefile, "read_table", fail)
    with pytest.raises(SystemExit) as ended:
        diff(make("a"), make("b"))
    assert ended.value.code == 125
    assert "ZeroDivisionError" in capsys.readouterr().err


def _damaged(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-50])
    return path
