"""Counters: the real reading, merging and resuming, with a stand-in for ncu on PATH."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from costprof.cli.sweep import sweep
from costprof.core.device import detect_device
from costprof.core.errors import InputError
from costprof.profiler.counters import add_counters, aggregate, choose
from costprof.profiler.dataset import read_measurements, write_measurements
from costprof.profiler.journal import Journal
from costprof.profiler.ncu import read_raw_page
from costprof.profiler.ncu_count import METRICS, unknown_metrics
from costprof.profiler.plan import Plan, make_plan
from costprof.profiler.process import end_marked_processes
from costprof.profiler.schema import COUNTERS
from costprof.profiler.spec import SweepSpec, parse_spec

NCU_DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "ncu"
DURATION = "gpu__time_duration.sum"


def test_sums_add_up_and_rates_are_weighted_by_duration() -> None:
    counters = [
        (0, "a", DURATION, "ns", 100.0),
        (0, "a", "dram__bytes_read.sum", "byte", 10.0),
        (0, "a", "lts__t_sector_hit_rate.pct", "%", 50.0),
        (1, "b", DURATION, "ns", 300.0),
        (1, "b", "dram__bytes_read.sum", "byte", 5.0),
        (1, "b", "lts__t_sector_hit_rate.pct", "%", 90.0),
        (2, "c", DURATION, "ns", 50.0),
    ]
    assert aggregate(counters) == {
        DURATION: 450.0,
        "dram__bytes_read.sum": 15.0,
        "lts__t_sector_hit_rate.pct": 80.0,
    }


def test_a_real_page_reduces_to_one_value_a_metric() -> None:
    page = NCU_DATA / "a10g_raw_page.csv"
    if not page.is_file():
        pytest.skip("the ncu sample is not beside this checkout")
    counters = list(read_raw_page(page))
    kernels = {index for index, *_ in counters}
    reduced = aggregate(counters)
    total = sum(value for _, _, metric, _, value in counters if metric == DURATION)
    assert reduced[DURATION] == pytest.approx(total)
    assert len(kernels) >= 1
    assert len(reduced) == len({metric for _, _, metric, _, _ in counters})


def test_the_subset_spreads_over_whole_experts_and_layers() -> None:
    values = {
        "name": "many",
        "experts": {"a": {"d_model": 64, "d_ff": 64, "dtype": "float32"}},
        "measure": [{"expert": "a", "ops": ["expert", "fc1"], "tokens": list(range(1, 60))}],
    }
    chosen = choose(make_plan(parse_spec(values, source="test"), "cpu").scenarios)
    assert len({s.scenario_id for s in chosen}) == len(chosen) == 20
    assert {s.op for s in chosen} == {"expert"}
    assert (chosen[0].tokens, chosen[-1].tokens) == (1, 59)


FAKE_NCU = """#!{python}
# Prints the page ncu would for the scenario it is asked to count, after looking at its script.
import json, os, pathlib, sys, time

args = sys.argv[1:]
page = pathlib.Path(args[args.index("--log-file") + 1])
asked = args[args.index("--metrics") + 1].split(",")
name = args[args.index("--nvtx-include") + 1].removeprefix("costprof@").removesuffix(":0/")
script = pathlib.Path(args[-1])
compile(script.read_text(), str(script), "exec")
values = json.loads(script.with_suffix(".json").read_text())
assert values["scenario_id"] == name
flushed = args[args.index("--cache-control") + 1]
assert flushed == ("all" if values["cache_state"] == "cold" else "none")
folder = pathlib.Path(os.environ["FAKE_NCU"])
with (folder / "calls").open("a") as log:
    log.write(name + chr(10))
how = json.loads((folder / "how.json").read_text()).get(str(values["tokens"]), "counts")
if how == "refused":
    page.write_text("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission")
    sys.exit(1)
if how == "crashes":
    sys.exit("the profiled process died")
if how == "nothing":
    page.write_text("==WARNING== No kernels were profiled.")
    sys.exit(0)
unknown = [metric for metric in asked if metric in how]
if unknown:
    # As the binary has it, for one; as ncu 2022.3 says of several in --query-metrics-mode.
    several = "==WARNING== The below metrics are either invalid or don't have suffixes." + chr(10)
    one = "==ERROR== Failed to find metric "
    page.write_text((several if len(unknown) > 1 else one) + ",".join(unknown) + chr(10))
    sys.exit(0 if len(unknown) > 1 else 1)
if how == "hangs":
    time.sleep(600)
lines = ["==PROF== Connected to process 1"]
lines.append(",".join(f'"{{c}}"' for c in ["ID", "Kernel Name", *asked]))
lines.append(",".join(f'"{{c}}"' for c in ["", "", *("" for _ in asked)]))
for index, kernel in enumerate(["gate_up", "down"]):
    lines.append(",".join(f'"{{c}}"' for c in [index, kernel, *(index + 1 for _ in asked)]))
page.write_text(chr(10).join(lines) + chr(10))
"""


@pytest.fixture
def fake_ncu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Put a stand-in for ncu on PATH; call it with what happens by tokens, get who was counted."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "ncu"
    program.write_text(FAKE_NCU.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("FAKE_NCU", str(folder))

    def set_up(how: dict[int, str] | None = None) -> list[str]:
        if how is not None:
            (folder / "how.json").write_text(json.dumps(how))
        calls = folder / "calls"
        return calls.read_text().split() if calls.exists() else []

    set_up({})
    return set_up


@pytest.fixture
def measured(tmp_path: Path, tiny_spec: SweepSpec) -> tuple[Plan, Path]:
    """A dataset as a sweep of a GPU leaves it, its last scenario failed."""
    plan = make_plan(tiny_spec, "cuda")
    folder = tmp_path / "data"
    folder.mkdir()
    last = plan.scenarios[-1].scenario_id
    for run in plan.runs:
        write_measurements(
            folder,
            run.run_id,
            [
                {
                    "scenario_id": s.scenario_id,
                    "tokens": s.tokens,
                    "status": "failed" if s.scenario_id == last else "ok",
                    "latency_us_p50": 7.0,
                }
                for s in run.scenarios
            ],
        )
    return plan, folder


def counters_by_scenario(folder: Path) -> dict[str, dict[str, float]]:
    rows = read_measurements(folder).to_pylist()
    return {row["scenario_id"]: dict(row["counters"]) for row in rows if row["counters"]}


def test_counters_go_into_the_row_and_kernel_by_kernel_into_a_part(
    measured: tuple[Plan, Path], fake_ncu: Callable[..., list[str]]
) -> None:
    plan, folder = measured
    report = add_counters(plan, folder, detect_device("cpu"))
    assert (report.counted, report.known, report.problems) == (4, 0, [])
    found = counters_by_scenario(folder)
    assert found.keys() == {s.scenario_id for s in plan.scenarios[:-1]}
    for values in found.values():
        assert values.keys() == set(METRICS)
        assert values["dram__bytes_read.sum"] == 1 + 2
        assert values["launch__registers_per_thread"] == 2, "of the longer kernel"
        assert values["lts__t_sector_hit_rate.pct"] == pytest.approx((1 + 2 * 2) / 3)
    table = pq.read_table(folder / "counters")
    assert table.schema.names == COUNTERS.names
    assert set(table["scenario_id"].to_pylist()) == set(found)
    assert set(table["kernel_name"].to_pylist()) == {"gate_up", "down"}
    assert table.num_rows == 4 * 2 * len(METRICS)
    assert [row["latency_us_p50"] for row in read_measurements(folder).to_pylist()] == [7.0] * 5


def test_what_was_counted_is_not_counted_again(
    measured: tuple[Plan, Path], fake_ncu: Callable[..., list[str]]
) -> None:
    plan, folder = measured
    assert add_counters(plan, folder, detect_device("cpu"), limit=2).counted == 2
    report = add_counters(plan, folder, detect_device("cpu"))
    assert (report.counted, report.known) == (2, 2)
    calls = fake_ncu()
    assert len(calls) == len(set(calls)) == 4
    before = counters_by_scenario(folder)
    # Measured anew: the row has lost them, the part has not.
    run = plan.runs[0]
    rows = [{"scenario_id": s.scenario_id, "status": "ok"} for s in run.scenarios]
    write_measurements(folder, run.run_id, rows)
    report = add_counters(plan, folder, detect_device("cpu"))
    assert report.counted == 0
    assert counters_by_scenario(folder) == before
    assert fake_ncu() == calls


def test_a_scenario_that_cannot_be_counted_costs_the_others_nothing(
    measured: tuple[Plan, Path], fake_ncu: Callable[..., list[str]]
) -> None:
    plan, folder = measured
    fake_ncu({4: "crashes"})
    report = add_counters(plan, folder, detect_device("cpu"))
    assert report.counted == 3
    (problem,) = report.problems
    assert problem.startswith("ncu ended with 1 on expert 64x64 float32 T=4")
    assert "(the profiled process died)" in problem
    fake_ncu({4: "nothing"})
    report = add_counters(plan, folder, detect_device("cpu"))
    assert (report.counted, report.known) == (0, 3)
    assert report.problems[0].startswith("ncu saw no kernel in expert 64x64 float32 T=4")
    fake_ncu({})
    assert add_counters(plan, folder, detect_device("cpu")).counted == 1


def test_a_refusal_is_named_once_and_ends_the_counting(
    measured: tuple[Plan, Path], fake_ncu: Callable[..., list[str]]
) -> None:
    plan, folder = measured
    fake_ncu({2: "refused"})
    report = add_counters(plan, folder, detect_device("cpu"))
    assert report.counted == 1
    (problem,) = report.problems
    assert "ERR_NVGPUCTRPERM" in problem
    assert "NVreg_RestrictProfilingToAdminUsers=0" in problem
    assert len(fake_ncu()) == 2
    assert len(counters_by_scenario(folder)) == 1


@pytest.mark.parametrize(
    "unknown", [["launch__grid_size"], ["launch__block_size", "sm__cycles_active.avg"]]
)
def test_a_metric_that_ncu_does_not_know_costs_that_one_alone(
    measured: tuple[Plan, Path], fake_ncu: Callable[..., list[str]], unknown: list[str]
) -> None:
    plan, folder = measured
    fake_ncu(dict.fromkeys((1, 2, 4), " ".join(unknown)))
    report = add_counters(plan, folder, detect_device("cpu"))
    assert report.counted == 4
    listed = ", ".join(m for m in METRICS if m in unknown)
    assert report.problems == [f"ncu does not know {listed}; the other counters were read"]
    assert len(fake_ncu()) == 5, "found out once"
    for values in counters_by_scenario(folder).values():
        assert values.keys() == set(METRICS) - set(unknown)
    notes = [row["note"] for row in read_measurements(folder).to_pylist() if row["counters"]]
    assert notes == [f"ncu gave no value of {listed}"] * 4


def test_an_ncu_that_knows_no_metric_at_all_is_not_asked_for_ever(
    measured: tuple[Plan, Path], fake_ncu: Callable[..., list[str]]
) -> None:
    plan, folder = measured
    fake_ncu(dict.fromkeys((1, 2, 4), " ".join(METRICS)))
    report = add_counters(plan, folder, detect_device("cpu"))
    assert (report.counted, len(report.problems)) == (0, 4)


COUNT = """
import json, sys
from pathlib import Path
from costprof.core.device import detect_device
from costprof.profiler.counters import add_counters
from costprof.profiler.plan import make_plan
from costprof.profiler.spec import parse_spec

plan = make_plan(parse_spec(json.loads(sys.argv[1]), source="tiny"), "cuda")
add_counters(plan, Path(sys.argv[2]), detect_device("cpu"))
"""


def test_a_killed_count_leaves_a_mark_by_which_its_processes_end(
    measured: tuple[Plan, Path],
    fake_ncu: Callable[..., list[str]],
    tiny_values: dict[str, Any],
) -> None:
    plan, folder = measured
    fake_ncu({1: "hangs"})
    killed = subprocess.Popen([sys.executable, "-c", COUNT, json.dumps(tiny_values), str(folder)])
    while not fake_ncu() and killed.poll() is None:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (mark,) = Journal(folder).unfinished_marks()
    assert end_marked_processes(mark) >= 1
    assert counters_by_scenario(folder) == {}
    fake_ncu({})
    assert add_counters(plan, folder, detect_device("cpu")).counted == 4
    assert Journal(folder).unfinished_marks() == []


def test_on_a_cpu_one_line_says_why_there_are_none(tmp_path: Path, tiny_spec: SweepSpec) -> None:
    report = add_counters(make_plan(tiny_spec, "cpu"), tmp_path, detect_device("cpu"))
    (problem,) = report.problems
    assert problem.startswith("ncu counts on NVIDIA GPUs alone, and this sweep measured the CPU;")
    assert "\n" not in problem


@pytest.mark.nsys
def test_the_real_ncu_takes_the_command_and_sees_no_kernel_on_a_cpu(
    measured: tuple[Plan, Path],
) -> None:
    if shutil.which("ncu") is None:
        pytest.skip("ncu is not installed")
    if detect_device().kind == "gpu":
        pytest.skip("this machine has a GPU whose counters may be readable")
    plan, folder = measured
    report = add_counters(plan, folder, detect_device("cpu"), limit=1)
    assert report.counted == 0
    (problem,) = report.problems
    assert "64x64 float32" in problem
    assert problem.endswith(("under ncu by hand", "knows this GPU and its driver"))
    assert counters_by_scenario(folder) == {}


@pytest.mark.nsys
@pytest.mark.parametrize("chip", ["ga100", "gh100"])
def test_the_real_ncu_knows_the_metrics_of_the_hardware_and_names_those_it_does_not(
    chip: str,
) -> None:
    ncu = shutil.which("ncu")
    if ncu is None:
        pytest.skip("ncu is not installed")
    # What a launch is like is not among the chip's counters.
    hardware = [m for m in METRICS if "." in m]
    bases = ",".join(m.split(".")[0] for m in hardware)
    done = subprocess.run(
        [
            *(ncu, "--query-metrics", "--query-metrics-mode", "suffix", "--chips", chip),
            *("--metrics", f"{bases},dram__nonsense,sm__nonsense_pct"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    said = "\n".join(line for line in lines if "  " not in line)  # its table has columns
    asked = [*hardware, "dram__nonsense.sum", "sm__nonsense_pct"]
    assert unknown_metrics(said, asked) == ["dram__nonsense.sum", "sm__nonsense_pct"]
    assert set(hardware) <= {line.split()[0] for line in lines if line}


@pytest.mark.parametrize("option", ["nsys", "ncu:0", "ncu:", "ncu:-3", "ncu:two"])
def test_how_many_to_count_is_checked_before_anything_is_measured(
    tmp_path: Path, option: str
) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="use --counters ncu, or ncu:N"):
        sweep(preset="cpu-smoke", out=out, counters=option)
    assert not out.exists()
