"""Hardware counters by ncu for a few scenarios of a sweep, merged into its dataset.

ncu replays every kernel many times and serialises them, so nothing is timed under it: counters are
a run of their own, of one call, after the timing. Each scenario's kernels become a part of
`counters/`, and one value a metric goes into its row of `measurements/`. A scenario whose part is
there is not counted again.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from costprof.core.device import DeviceFingerprint
from costprof.core.errors import CostprofError, ToolError
from costprof.profiler.dataset import read_part, write_measurements
from costprof.profiler.importing import importing_environment
from costprof.profiler.journal import Journal
from costprof.profiler.ncu import Counter, read_counters, read_raw_page, write_counters
from costprof.profiler.plan import Plan, Run
from costprof.profiler.process import Completed, run_tool
from costprof.profiler.scenario import Scenario
from costprof.profiler.scripts import write_scripts

METRICS = (
    "gpu__time_duration.sum",
    "sm__cycles_active.avg",
    "sm__cycles_elapsed.max",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "lts__t_sector_hit_rate.pct",
    # Occupancy: what was reached, what is possible, and what limits it.
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "sm__maximum_warps_per_active_cycle_pct",
    "launch__occupancy_limit_blocks",
    "launch__occupancy_limit_registers",
    "launch__occupancy_limit_shared_mem",
    "launch__occupancy_limit_warps",
    "launch__waves_per_multiprocessor",
    "launch__registers_per_thread",
    "launch__shared_mem_per_block",
    "launch__shared_mem_per_block_dynamic",
    "launch__shared_mem_per_block_static",
    "launch__grid_size",
    "launch__block_size",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
)
DEFAULT_LIMIT = 20

_DURATION = "gpu__time_duration.sum"
_TIMEOUT_S = 300.0
# One call is counted; those after it only take time.
_FEW_CALLS = {"min_repetitions": 3, "max_repetitions": 3, "target_ms": 1.0}
_REFUSED = "ERR_NVGPUCTRPERM"
_NO_MORE = "no more counters were read; the timings are complete"


@dataclass(slots=True)
class CounterReport:
    """How many scenarios were counted now and `known` from before; a line for each problem."""

    counted: int = 0
    known: int = 0
    problems: list[str] = field(default_factory=list)


class _NotAllowed(ToolError):
    """No scenario can be counted here."""


def add_counters(
    plan: Plan, folder: Path, device: DeviceFingerprint, *, limit: int = DEFAULT_LIMIT
) -> CounterReport:
    """Count one call of up to `limit` measured scenarios of `plan`, in its dataset `folder`.

    Whatever goes wrong is reported; the timings stay as they are. A scenario that fails costs the
    others nothing, unless it shows that none can be counted.
    """
    report = CounterReport()
    try:
        ncu = _require_ncu(plan)
        rows = _rows_with_counters(plan, folder)
    except CostprofError as error:
        report.problems.append(str(error))
        return report
    for scenario in choose([s for s in plan.scenarios if s.scenario_id in rows], limit):
        part = _part(folder, scenario)
        try:
            if part.is_file():
                report.known += 1
                if not rows[scenario.scenario_id]:  # measured anew since
                    _merge(folder, plan, scenario, aggregate(read_counters(part)))
                continue
            _count_and_keep(ncu, scenario, plan, folder, device)
            report.counted += 1
        except _NotAllowed as error:
            report.problems.append(str(error))
            break
        except CostprofError as error:
            report.problems.append(str(error))
    return report


def choose(scenarios: list[Scenario], limit: int = DEFAULT_LIMIT) -> list[Scenario]:
    """Spread `limit` scenarios evenly over those of whole experts, layers and attention blocks."""
    whole = [s for s in scenarios if s.op in ("expert", "layer", "attention")]
    if len(whole) <= limit:
        return whole
    return [whole[round(i * (len(whole) - 1) / max(limit - 1, 1))] for i in range(limit)]


def aggregate(counters: Iterable[Counter]) -> dict[str, float]:
    """Reduce the counters of a call's kernels to one value a metric.

    Sums add up over kernels. What describes a launch (`launch__*`: registers, shared memory,
    occupancy limits) is that of the longest kernel. Of rates and percentages the mean is taken,
    weighted by duration.
    """
    by_kernel: dict[int, dict[str, float]] = {}
    for index, _, metric, _, value in counters:
        by_kernel.setdefault(index, {})[metric] = value
    result: dict[str, float] = {}
    for metric in sorted({metric for kernel in by_kernel.values() for metric in kernel}):
        kernels = [kernel for kernel in by_kernel.values() if metric in kernel]
        weights = [kernel.get(_DURATION, 1.0) for kernel in kernels]
        values = [kernel[metric] for kernel in kernels]
        if metric.endswith(".sum"):
            result[metric] = sum(values)
        elif metric.startswith("launch__"):
            result[metric] = values[weights.index(max(weights))]
        else:
            weighted = sum(w * value for w, value in zip(weights, values, strict=True))
            result[metric] = weighted / (sum(weights) or 1.0)
    return result


def _require_ncu(plan: Plan) -> str:
    if plan.device == "cpu":
        raise ToolError(
            "ncu counts on NVIDIA GPUs alone, and this sweep measured the CPU",
            "no counters were read; the timings are complete",
            "leave --counters out, or sweep on a GPU",
        )
    found = shutil.which("ncu")
    if found is None:
        raise ToolError(
            "ncu was not found on PATH",
            "no counters were read; the timings are complete",
            "install NVIDIA Nsight Compute, or leave --counters out",
        )
    return found


def _rows_with_counters(plan: Plan, folder: Path) -> dict[str, bool]:
    """Of each scenario that did not fail: whether its row has counters."""
    found = {}
    for run in plan.runs:
        path = folder / "measurements" / f"{run.run_id}.parquet"
        for row in read_part(path).to_pylist():
            if row["status"] != "failed":
                found[row["scenario_id"]] = bool(row["counters"])
    return found


def _part(folder: Path, scenario: Scenario) -> Path:
    return folder / "counters" / f"ncu-{scenario.scenario_id}.parquet"


def _count_and_keep(
    ncu: str, scenario: Scenario, plan: Plan, folder: Path, device: DeviceFingerprint
) -> None:
    journal = Journal(folder)
    mark = uuid.uuid4().hex
    journal.append("count", scenario_id=scenario.scenario_id, mark=mark)
    counters = _count(ncu, scenario, plan, device, mark)
    # The part comes last: where it is, the row has them too.
    _merge(folder, plan, scenario, aggregate(counters))
    part = _part(folder, scenario)
    write_counters(counters, folder, part=part.stem, source="ncu", scenario_id=scenario.scenario_id)
    journal.append("counted", scenario_id=scenario.scenario_id)


def _count(
    ncu: str, scenario: Scenario, plan: Plan, device: DeviceFingerprint, mark: str
) -> list[Counter]:
    with tempfile.TemporaryDirectory(prefix="costprof-") as scratch:
        folder = Path(scratch)
        few = plan.timing.model_copy(update=_FEW_CALLS)
        write_scripts(Run((scenario,)), folder, "nvtx", few, device)
        page = folder / "raw.csv"
        completed = run_tool(
            [
                ncu,
                *("--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none"),
                # By itself ncu empties the caches before every replay of a kernel.
                *("--cache-control", "all" if scenario.cache_state == "cold" else "none"),
                *("--metrics", ",".join(METRICS)),
                *("--nvtx", "--nvtx-include", f"costprof@{scenario.scenario_id}:0/"),
                *("--log-file", str(page)),
                *(sys.executable, str(folder / f"{scenario.scenario_id}.py")),
            ],
            timeout_s=_TIMEOUT_S,
            env=importing_environment(),
            mark=mark,
        )
        said = page.read_text(encoding="utf-8", errors="replace") if page.is_file() else ""
        _require_counted(scenario, completed, completed.stdout + completed.stderr + said)
        return list(read_raw_page(page, name=f"ncu's raw page of {scenario.label()}"))


def _require_counted(scenario: Scenario, completed: Completed, said: str) -> None:
    if _REFUSED in said:
        raise _NotAllowed(
            f"the driver refuses hardware counters to this user ({_REFUSED})",
            _NO_MORE,
            "run as root, or set NVreg_RestrictProfilingToAdminUsers=0 for the driver",
        )
    if completed.timed_out or not completed.succeeded:
        how = "did not end in time" if completed.timed_out else f"ended with {completed.returncode}"
        raise ToolError(
            f"ncu {how} on {scenario.label()} ({completed.last_words or 'no message'})",
            "it has no counters; its timing stays",
            "run its script in the dataset's folder scripts under ncu by hand",
        )
    if "No kernels were profiled" in said or not said:
        raise ToolError(
            f"ncu saw no kernel in {scenario.label()}",
            "it has no counters; its timing stays",
            "see whether ncu --version knows this GPU and its driver",
        )


def _merge(folder: Path, plan: Plan, scenario: Scenario, counters: dict[str, float]) -> None:
    run = next(run for run in plan.runs if scenario in run.scenarios)
    path = folder / "measurements" / f"{run.run_id}.parquet"
    rows = read_part(path).to_pylist()
    for row in rows:
        if row["scenario_id"] == scenario.scenario_id:
            row["counters"] = list(counters.items())
    write_measurements(folder, run.run_id, rows)
