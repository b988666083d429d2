"""`costprof sweep --search tiles`: measure what the model chooses, step by step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from costprof.cli.progress import SweepProgress
from costprof.costmodel.tile_search import TileSearch
from costprof.profiler.dataset import read_measurements
from costprof.profiler.plan import Plan
from costprof.profiler.sweep import Sweep, SweepReport, finished_runs


def run_search(
    search: TileSearch, sweep_of: Callable[[Plan], Sweep], folder: Path
) -> tuple[Plan, SweepReport, list[dict[str, Any]]]:
    """Measure until every target is done; return the grown plan, its report and the winners."""
    plan, rows = search.plan, dict[str, dict[str, Any]]()
    report = SweepReport()
    measuring_s = wall_s = 0.0
    notes: Counter[str] = Counter()
    while (step := search.step(plan, rows)).plan is not None:
        plan = step.plan
        with SweepProgress(plan, finished_runs(plan, folder)) as progress:
            report = sweep_of(plan).run(progress)
        measuring_s += report.measuring_s
        wall_s += report.wall_s
        notes += Counter(report.notes)
        known = {scenario.scenario_id for scenario in plan.scenarios}
        read: list[dict[str, Any]] = read_measurements(folder).to_pylist()
        rows = {row["scenario_id"]: row for row in read if row["scenario_id"] in known}
    report.measuring_s, report.wall_s, report.notes = measuring_s, wall_s, dict(notes)
    return plan, report, search.winners(step.choices, rows)
