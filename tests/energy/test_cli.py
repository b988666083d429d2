"""`--energy` on the command line: what is refused, and a wall meter end to end on a CPU."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from command_line import Run, runner

from costprof.core.device import detect_device
from costprof.profiler.dataset import read_measurements
from costprof.profiler.energy.store import read_trials
from costprof.profiler.journal import Journal
from costprof.profiler.process import end_marked_processes

SPEC = """
name = "metered"
device = "cpu"

[experts.f32]
d_model = 64
d_ff = 64
dtype = "float32"

[[measure]]
expert = "f32"
tokens = [1, 4]
cache = ["warm"]

[timing]
target_ms = 10
remeasure = 0
threads = 1
max_robust_cv = 100
max_pass_disagreement = 100
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a runner of the command line."""
    return runner(monkeypatch, capfd)


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.toml"
    path.write_text(SPEC)
    return path


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--energy", "1"], "a CPU here has no energy counter; nothing was measured;"),
        (["--energy", "none"], "--energy 'none' is no number of scenarios"),
        (["--energy-meter"], "say how energy is measured; but none is asked for"),
        (["--energy", "1", "--energy-window", "1.5"], "--energy-window is 1.5 s"),
        (["--energy", "1", "--energy-window", "nan"], "--energy-window is nan s"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_written(
    run: Run, spec: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    code, _, errors = run("sweep", spec, "--out", tmp_path / "out", *options)
    assert code in (2, 3)
    assert words in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_plan_says_what_energy_adds(run: Run, spec: Path) -> None:
    code, out, _ = run("sweep", spec, "--energy", "all", "--dry-run")
    assert code == 0
    assert "energy of 2 of them, three trials each, about 2.4 min more" in out
    _, plain, _ = run("sweep", spec, "--dry-run", "--json")
    _, more, _ = run("sweep", spec, "--energy", "1", "--dry-run", "--json")
    energy = json.loads(more)["energy"]
    assert len(energy["scenarios"]) == 1
    assert json.loads(more)["estimated_s"] == pytest.approx(
        json.loads(plain)["estimated_s"] + energy["estimated_s"], abs=1
    )


def meter_csv(dataset: Path, path: Path, *, idle_w: float, load_w: float) -> None:
    """Write what a meter of ten readings a second would have, by the phases the trials noted."""
    phases: list[tuple[float, float, bool]] = []
    for notes in sorted((dataset / "logs" / "energy").glob("*.jsonl")):
        for line in notes.read_text().splitlines():
            note = json.loads(line)
            if note["event"] == "phase":
                edges = note["start"]["unix_s"], note["end"]["unix_s"]
                phases.append((*edges, note["name"] == "load"))
    start, end = min(p[0] for p in phases), max(p[1] for p in phases)
    lines = ["time_s,power_w"]
    for index in range(int((end - start) * 10) + 30):
        time_s = start - 1.0 + index / 10
        loaded = any(first - 1.0 <= time_s <= last for first, last, load in phases if load)
        lines.append(f"{time_s:.3f},{load_w if loaded else idle_w}")
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.slow
def test_a_wall_meter_end_to_end_on_a_cpu(run: Run, spec: Path, tmp_path: Path) -> None:
    out, power = tmp_path / "out", tmp_path / "power.csv"
    sweep = ["sweep", spec, "--out", out, "--backend", "inprocess"]
    options = ["--energy", "1", "--energy-meter", "--energy-window", "2"]
    code, printed, errors = run(*sweep, *options)
    assert code == 0, errors
    assert "3 energy trials wait for the wall meter: costprof ingest --meter" in printed
    assert {r["energy_source"] for r in read_measurements(out).to_pylist()} == {"modelled"}

    # A file of another day fits nothing and changes nothing.
    power.write_text("1600000000,50\n1600000001,51\n")
    code, _, errors = run("ingest", "--meter", power, "--out", out)
    assert code == 2
    assert "power.csv has no reading during any of the 3 trials" in errors

    meter_csv(out, power, idle_w=40.0, load_w=65.0)
    code, printed, errors = run("ingest", "--meter", power, "--out", out)
    assert code == 0, errors
    assert printed == (
        "power.csv: trials: 3 accepted; energy of 1 scenarios measured (external_meter)\n"
    )
    ((name, trials),) = read_trials(out).items()
    for row in trials:
        assert row["source"] == "external_meter"
        assert row["energy_active_mj"] == pytest.approx(25 * row["call_us"] * 1e-3, rel=0.02)
        assert row["counter_mj"] is None
    measured = {r["scenario_id"]: r for r in read_measurements(out).to_pylist()}
    assert measured[name]["energy_source"] == "external_meter"
    idle_w = measured[name]["energy_idle_mj"] / measured[name]["latency_us_p50"] * 1e3
    assert idle_w == pytest.approx(40.0, rel=0.01)
    other = next(row for key, row in measured.items() if key != name)
    assert other["energy_source"] == "modelled"

    # Neither the trials nor the file are taken twice.
    code, printed, _ = run(*sweep, *options, "--resume")
    assert code == 0
    assert "energy measured of 1 scenarios (external_meter)" in printed
    assert len(read_trials(out)[name]) == 3
    assert run("ingest", "--meter", power, "--out", out)[0] == 0
    assert {r["scenario_id"]: r for r in read_measurements(out).to_pylist()} == measured

    # A file that ends before the last trial does: two trials are not enough for an energy.
    readings = power.read_text().splitlines()
    power.write_text("\n".join(readings[: len(readings) - 80]) + "\n")
    code, printed, _ = run("ingest", "--meter", power, "--out", out, "--json")
    summary = json.loads(printed)["meters"][0]
    assert summary["trials"] == {"accepted": 2, "rejected": 1}
    assert "readings" in summary["reasons"][0]
    assert summary["measured"] == {}
    withdrawn = {r["scenario_id"]: r for r in read_measurements(out).to_pylist()}[name]
    assert (withdrawn["energy_source"], withdrawn["energy_active_mj"]) == (None, None)

    power.write_text("\n".join(readings) + "\n")
    assert run("ingest", "--meter", power, "--out", out)[0] == 0
    code, printed, _ = run("inspect", out)
    assert code == 0
    assert "3 energy" in printed
    table = tmp_path / "table.parquet"
    code, printed, errors = run("fit", out, "--out", table)
    assert code == 0, errors
    rows = pq.read_table(table).to_pylist()
    assert {row["energy_source"] for row in rows} == {"external_meter"}
    tokens = trials and measured[name]["tokens"]
    (priced,) = [row for row in rows if row["tokens"] == tokens]
    assert priced["energy_mj_p50"] == pytest.approx(measured[name]["energy_active_mj"])


def test_a_meter_without_a_sweep_is_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "power.csv"
    path.write_text("1700000000,50\n1700000001,51\n")
    code, _, errors = run("ingest", "--meter", path, "--out", tmp_path)
    assert code == 2
    assert "holds no sweep" in errors
    assert not (tmp_path / ".lock").exists()


@pytest.mark.gpu
def test_energy_of_a_small_expert_on_the_gpu_at_hand(run: Run, tmp_path: Path) -> None:
    if detect_device().kind != "gpu":
        pytest.skip("needs an NVIDIA GPU")
    text = SPEC.replace('device = "cpu"', 'device = "cuda"').replace("= 64", "= 1024")
    path = tmp_path / "sweep.toml"
    path.write_text(text.replace("float32", "bfloat16"))
    out = tmp_path / "out"
    options: list[Any] = ["--backend", "inprocess", "--energy", "1"]
    code, printed, errors = run("sweep", path, "--out", out, *options)
    assert code == 0, errors
    ((_, trials),) = read_trials(out).items()
    accepted = [row for row in trials if row["status"] == "accepted"]
    assert len(accepted) >= 3, [row["reason"] for row in trials]
    for row in accepted:
        assert row["launch"] == "graph", row["capture_error"]
        assert row["power_mean_w"] > row["idle_w_before"]
        assert abs(row["disagreement"] or 0.0) <= 0.03
    assert "energy measured of 1 scenarios" in printed


@pytest.mark.slow
def test_ctrl_c_keeps_the_finished_trials_and_leaves_no_process(
    run: Run, spec: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["sweep", str(spec), "--out", str(out), "--backend", "inprocess"]
    command += ["--energy", "1", "--energy-meter", "--energy-window", "2"]
    # A test run in the background may ignore SIGINT, and children inherit that.
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from costprof.cli.main import main\n"
        "sys.argv = ['costprof', *sys.argv[1:]]\n"
        "main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list((out / "logs" / "energy").glob("*.1.jsonl")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted; what was measured is in" in errors
    marks = Journal(out).unfinished_marks()
    assert len(marks) == 2, "of the trial that was interrupted"
    assert sum(end_marked_processes(mark) for mark in marks) == 0
    ((name, trials),) = read_trials(out).items()
    assert [row["status"] for row in trials] == ["waiting"]
    code_, _, errors = run(*command, "--resume")
    assert code_ == 0, errors
    again = read_trials(out)[name]
    assert [row["trial"] for row in again] == [0, 1, 2]
    assert again[0]["measured_at"] == trials[0]["measured_at"], "it was not run again"
