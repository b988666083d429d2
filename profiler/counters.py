"""Hardware counters by ncu for a few scenarios of a sweep, merged into its dataset.

ncu replays every kernel many times and serialises them, so nothing is timed under it: counters are
a run of their own, of one call, after the timing. Each scenario's kernels become a part of
`counters/`, and one value a metric goes into its row of `measurements/`. A scenario whose part is
there is not counted again.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from costprof.core.device import DeviceFingerprint
from costprof.core.errors import CostprofError
from costprof.profiler.dataset import read_part, write_measurements
from costprof.profiler.journal import Journal
from costprof.profiler.ncu import Counter, read_counters, write_counters
from costprof.profiler.ncu_count import METRICS, Ncu, NotAllowed, find_ncu
from costprof.profiler.plan import Plan
from costprof.profiler.scenario import Scenario

DEFAULT_LIMIT = 20

_DURATION = "gpu__time_duration.sum"


@dataclass(slots=True)
class CounterReport:
    """How many scenarios were counted now and `known` from before; a line for each problem."""

    counted: int = 0
    known: int = 0
    problems: list[str] = field(default_factory=list)


def add_counters(
    plan: Plan, folder: Path, device: DeviceFingerprint, *, limit: int = DEFAULT_LIMIT
) -> CounterReport:
    """Count one call of up to `limit` measured scenarios of `plan`, in its dataset `folder`.

    Whatever goes wrong is reported; the timings stay as they are. A scenario that fails costs the
    others nothing, unless it shows that none can be counted.
    """
    report = CounterReport()
    try:
        ncu = find_ncu(plan)
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
        except NotAllowed as error:
            report.problems.append(str(error))
            break
        except CostprofError as error:
            report.problems.append(str(error))
    if ncu.unknown:
        report.problems.append(
            f"ncu does not know {', '.join(ncu.unknown)}; the other counters were read"
        )
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
    ncu: Ncu, scenario: Scenario, plan: Plan, folder: Path, device: DeviceFingerprint
) -> None:
    journal = Journal(folder)
    mark = uuid.uuid4().hex
    journal.append("count", scenario_id=scenario.scenario_id, mark=mark)
    counters = ncu.count(scenario, plan, device, mark)
    # The part comes last: where it is, the row has them too.
    _merge(folder, plan, scenario, aggregate(counters))
    part = _part(folder, scenario)
    write_counters(counters, folder, part=part.stem, source="ncu", scenario_id=scenario.scenario_id)
    journal.append("counted", scenario_id=scenario.scenario_id)


def _merge(folder: Path, plan: Plan, scenario: Scenario, counters: dict[str, float]) -> None:
    run = next(run for run in plan.runs if scenario in run.scenarios)
    path = folder / "measurements" / f"{run.run_id}.parquet"
    rows = read_part(path).to_pylist()
    for row in rows:
        if row["scenario_id"] == scenario.scenario_id:
            row["counters"] = list(counters.items())
            missing = [metric for metric in METRICS if metric not in counters]
            note = f"ncu gave no value of {', '.join(missing)}"
            if missing and note not in (row["note"] or ""):
                row["note"] = "; ".join(filter(None, [row["note"], note]))
    write_measurements(folder, run.run_id, rows)
