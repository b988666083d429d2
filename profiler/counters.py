"""Hardware counters by ncu for a few scenarios of a sweep, merged into their rows.

ncu replays every kernel many times and serialises them, so nothing is timed under it: counters are
a run of their own, of one call, after the timing.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from costprof.core.device import DeviceFingerprint
from costprof.core.errors import CostprofError, ToolError
from costprof.profiler.dataset import write_measurements
from costprof.profiler.ncu import Counter, read_raw_page
from costprof.profiler.plan import Plan, Run
from costprof.profiler.process import run_tool
from costprof.profiler.scenario import Scenario
from costprof.profiler.schema import MEASUREMENTS
from costprof.profiler.scripts import write_scripts

METRICS = (
    "gpu__time_duration.sum",
    "sm__cycles_active.avg",
    "sm__cycles_elapsed.max",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "lts__t_sector_hit_rate.pct",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
    "launch__registers_per_thread",
    "launch__occupancy_limit_registers",
    "launch__occupancy_limit_shared_mem",
    "launch__waves_per_multiprocessor",
)
_DURATION = "gpu__time_duration.sum"
_LIMIT = 20
_TIMEOUT_S = 300.0
_REFUSED = "ERR_NVGPUCTRPERM"


@dataclass(frozen=True, slots=True)
class CounterReport:
    """How many scenarios got counters, and the one line that says why others did not."""

    counted: int
    problem: str | None


def add_counters(plan: Plan, folder: Path, device: DeviceFingerprint) -> CounterReport:
    """Count one call of up to 20 scenarios of `plan` and fill their `counters` column.

    Whatever goes wrong ends the counting and is reported; the timings stay as they are.
    """
    counted = 0
    try:
        ncu = _require_ncu()
        for scenario in choose(plan.scenarios):
            counters = aggregate(_count(ncu, scenario, plan, device))
            _merge(folder, plan, scenario, counters)
            counted += 1
    except CostprofError as error:
        return CounterReport(counted, str(error))
    return CounterReport(counted, None)


def choose(scenarios: list[Scenario], limit: int = _LIMIT) -> list[Scenario]:
    """Spread `limit` scenarios evenly over those of whole experts, layers and attention blocks."""
    whole = [s for s in scenarios if s.op in ("expert", "layer", "attention")]
    if len(whole) <= limit:
        return whole
    return [whole[round(i * (len(whole) - 1) / (limit - 1))] for i in range(limit)]


def aggregate(counters: Iterable[Counter]) -> dict[str, float]:
    """Reduce the counters of a call's kernels to one value a metric.

    Sums add up over kernels; of rates and percentages the mean is taken, weighted by duration.
    """
    by_kernel: dict[int, dict[str, float]] = {}
    for index, _, metric, _, value in counters:
        by_kernel.setdefault(index, {})[metric] = value
    result: dict[str, float] = {}
    for metric in sorted({metric for kernel in by_kernel.values() for metric in kernel}):
        kernels = [kernel for kernel in by_kernel.values() if metric in kernel]
        if metric.endswith(".sum"):
            result[metric] = sum(kernel[metric] for kernel in kernels)
            continue
        weights = [kernel.get(_DURATION, 1.0) for kernel in kernels]
        weighted = sum(w * k[metric] for w, k in zip(weights, kernels, strict=True))
        result[metric] = weighted / (sum(weights) or 1.0)
    return result


def _require_ncu() -> str:
    found = shutil.which("ncu")
    if found is None:
        raise ToolError(
            "ncu was not found on PATH",
            "no counters were read; the timings are complete",
            "install NVIDIA Nsight Compute, or leave --counters out",
        )
    return found


def _count(ncu: str, scenario: Scenario, plan: Plan, device: DeviceFingerprint) -> list[Counter]:
    with tempfile.TemporaryDirectory(prefix="costprof-") as scratch:
        folder = Path(scratch)
        write_scripts(Run((scenario,)), folder, "nvtx", plan.timing, device)
        page = folder / "raw.csv"
        completed = run_tool(
            [
                ncu,
                *("--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none"),
                *("--metrics", ",".join(METRICS)),
                *("--nvtx", "--nvtx-include", f"costprof@{scenario.scenario_id}:0/"),
                *("--log-file", str(page)),
                *(sys.executable, str(folder / f"{scenario.scenario_id}.py")),
            ],
            timeout_s=_TIMEOUT_S,
        )
        said = completed.stdout + completed.stderr
        said += page.read_text(encoding="utf-8", errors="replace") if page.is_file() else ""
        if _REFUSED in said:
            raise ToolError(
                "the driver refuses hardware counters to this user (ERR_NVGPUCTRPERM)",
                "no more counters were read; the timings are complete",
                "run as root, or set NVreg_RestrictProfilingToAdminUsers=0 for the driver",
            )
        if "No kernels were profiled" in said or not page.is_file():
            raise ToolError(
                f"ncu saw no kernel in {scenario.label()}",
                "no more counters were read; the timings are complete",
                "counters need an NVIDIA GPU and a kernel that runs on it",
            )
        if not completed.succeeded:
            how = (
                "did not end in time"
                if completed.timed_out
                else f"ended with {completed.returncode}"
            )
            raise ToolError(
                f"ncu {how} on {scenario.label()} ({completed.last_words or 'no message'})",
                "no more counters were read; the timings are complete",
                "run its script in the dataset's folder scripts under ncu by hand",
            )
        return list(read_raw_page(page, name="ncu's raw page"))


def _merge(folder: Path, plan: Plan, scenario: Scenario, counters: dict[str, float]) -> None:
    run = next(run for run in plan.runs if scenario in run.scenarios)
    path = folder / "measurements" / f"{run.run_id}.parquet"
    rows = pq.read_table(path, schema=MEASUREMENTS).to_pylist()
    for row in rows:
        if row["scenario_id"] == scenario.scenario_id:
            row["counters"] = list(counters.items())
    write_measurements(folder, run.run_id, rows)
