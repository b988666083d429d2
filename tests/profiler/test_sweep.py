"""Sweeps for real, timed in-process: what goes wrong in a kernel must not cost the others."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from costprof.core.device import detect_device, software_versions
from costprof.profiler.backends.selftimed import inprocess_backend
from costprof.profiler.dataset import read_measurements
from costprof.profiler.journal import Journal
from costprof.profiler.plan import Run, make_plan
from costprof.profiler.rows import Energy
from costprof.profiler.schema import MEASUREMENTS
from costprof.profiler.spec import parse_spec
from costprof.profiler.sweep import Sweep, SweepReport

ROOT = Path(__file__).resolve().parents[2]

BAD_KERNELS = """
import os, signal, time

def raises(x, w1, w2):
    raise RuntimeError("the kernel broke")

def dies(x, w1, w2):
    os.kill(os.getpid(), signal.SIGKILL)

def hangs(x, w1, w2):
    time.sleep(60)
"""


class Recorder:
    """Remembers what a progress bar would be told."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.ended: list[dict[str, int]] = []

    def process_begins(self, run: Run, scenarios: int, notes: Path) -> None:
        self.begun.append(scenarios)

    def run_ends(self, run: Run, statuses: dict[str, int]) -> None:
        self.ended.append(statuses)


def sweep(
    folder: Path, values: dict[str, Any], **options: Any
) -> tuple[SweepReport, Recorder, pa.Table]:
    plan = make_plan(parse_spec(values, source="test"), "cpu")
    recorder = Recorder()
    folder.mkdir(exist_ok=True)
    report = Sweep(
        plan=plan,
        folder=folder,
        backend=inprocess_backend(),
        device=options.pop("device", None) or detect_device("cpu"),
        software=software_versions(),
        **options,
    ).run(recorder)
    return report, recorder, read_measurements(folder)


@pytest.fixture
def bad_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "bad_kernels_for_test.py").write_text(BAD_KERNELS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "bad_kernels_for_test"


def with_kernel(values: dict[str, Any], name: str) -> dict[str, Any]:
    bad = {"expert": "f32", "tokens": [8], "kernels": {"expert": name}}
    return {**values, "measure": [bad, *values["measure"]]}


def test_a_sweep_writes_one_complete_row_per_scenario(
    tmp_path: Path, tiny_values: dict[str, Any]
) -> None:
    def energy(*, flops: float, bytes: float, latency_us: float) -> Energy:
        assert flops > 0
        assert bytes > 0
        return Energy(
            active_mj=latency_us * 1e-3,
            idle_mj=0.0,
            low_mj=0.0,
            high_mj=1.0,
            power_mean_w=1.0,
            temp_rise_c=0.0,
            source="modelled",
        )

    report, recorder, table = sweep(tmp_path / "data", tiny_values, energy_model=energy)
    assert report.statuses == {"ok": 5}
    assert 0 < report.measuring_share < 1
    assert sum(recorder.begun) == 5
    assert table.schema.equals(MEASUREMENTS)
    rows = table.to_pylist()
    assert {row["quantisation"] for row in rows} == {"none", "int4"}
    for row in rows:
        assert row["backend"] == "inprocess"
        assert row["timer"] == "monotonic_clock"
        assert row["num_threads"] == 1
        assert row["n"] >= 20
        assert row["latency_us_p05"] <= row["latency_us_p50"] <= row["latency_us_p95"]
        assert row["energy_active_mj"] == pytest.approx(row["latency_us_p50"] * 1e-3)
        assert row["energy_mj"] == row["energy_active_mj"]  # nothing is idle in this model
        assert row["energy_trusted"] is None
        assert row["energy_source"] == "modelled"
        assert row["kernel_sum_us"] is None
        assert row["device_name"] == detect_device("cpu").name
        assert row["run_id"].endswith(".0")
    description = json.loads((tmp_path / "data" / "sweep.json").read_text())
    assert description["moes"][0]["class_of_expert"][0] in {row["class_id"] for row in rows}


def test_weights_that_fit_the_cache_are_not_called_cold(
    tmp_path: Path, tiny_values: dict[str, Any]
) -> None:
    expert_bytes = 3 * 64 * 64 * 4
    device = dataclasses.replace(
        detect_device("cpu"), memory_bytes=4 * 8 * expert_bytes, cache_bytes=3 * expert_bytes
    )
    layer = {"expert": "f32", "experts": 8, "top_k": 1, "tokens": [8], "cache": ["cold", "warm"]}
    # A quarter of the memory holds one copy of the layer: all of it is more than two caches, two
    # experts are less than one. Of an expert alone there is room for as many copies as it takes.
    layer["distributions"] = ["balanced", "active-2"]
    values = {**tiny_values, "measure": tiny_values["measure"][:1], "moe": [], "layer": [layer]}
    report, _, table = sweep(tmp_path / "data", values, device=device)
    rows = table.to_pylist()
    found = {
        (row["op"], row["distribution"], row["cache_state"]): row["weight_copies"] for row in rows
    }
    assert found == {
        ("expert", None, "cold"): 7,
        ("layer", "balanced", "cold"): 1,
        ("layer", "active-2", "mixed"): 1,
        ("layer", "balanced", "warm"): 1,
        ("layer", "active-2", "warm"): 1,
    }
    (mixed,) = [row for row in rows if row["cache_state"] == "mixed"]
    assert mixed["class_id"] not in {row["class_id"] for row in rows if row is not mixed}
    fact = "not cold: memory does not hold enough copies of the weights"
    assert (
        mixed["note"]
        == f"{fact} (1 of them, of which a call reads 0.1 MiB, for a cache of 0.1 MiB)"
    )
    assert [row["note"] for row in rows if row is not mixed] == [None] * (len(rows) - 1)
    assert report.notes == {fact: 1}


def test_a_second_start_measures_nothing_again(tmp_path: Path, tiny_values: dict[str, Any]) -> None:
    _, _, before = sweep(tmp_path / "data", tiny_values)
    report, recorder, after = sweep(tmp_path / "data", tiny_values)
    assert recorder.begun == []
    assert report.statuses == {"ok": 5}
    assert after.equals(before)


def test_a_part_without_its_journal_line_is_measured_again_and_replaced(
    tmp_path: Path, tiny_values: dict[str, Any]
) -> None:
    sweep(tmp_path / "data", tiny_values)
    journal = Journal(tmp_path / "data").path
    lines = journal.read_text().splitlines()
    assert "done" in lines[-1]
    journal.write_text("\n".join(lines[:-1]) + "\n")
    _, recorder, table = sweep(tmp_path / "data", tiny_values)
    assert len(recorder.begun) == 1
    assert len(set(table["scenario_id"].to_pylist())) == table.num_rows == 5


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("raises", "RuntimeError: the kernel broke"),
        ("dies", "the process died of SIGKILL"),
        ("hangs", "not done within 8 s"),
    ],
)
def test_a_bad_kernel_becomes_a_failed_row_and_the_others_are_measured(
    tmp_path: Path, tiny_values: dict[str, Any], bad_kernels: str, function: str, words: str
) -> None:
    values = with_kernel(tiny_values, f"{bad_kernels}:{function}")
    values["timing"] = {**values["timing"], "timeout_s": 8}
    report, _, table = sweep(tmp_path / "data", values)
    assert report.statuses == {"ok": 5, "failed": 1}
    (failed,) = [row for row in table.to_pylist() if row["status"] == "failed"]
    assert failed["error"] == words
    assert failed["tokens"] == 8
    assert failed["latency_us_p50"] is None


def test_three_kills_and_resumes_give_the_calm_sweeps_list() -> None:
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks" / "kill.py")),
            *("--kills", "3", "--backend", "inprocess"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["kills"] == 3
    assert figures["equal_to_calm"] is True
