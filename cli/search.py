"""Sweeps whose scenarios are chosen step by step: measure, ask what is next, measure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from costprof.cli.progress import SweepProgress
from costprof.profiler.dataset import read_measurements
from costprof.profiler.plan import Plan
from costprof.profiler.sweep import Sweep, SweepReport, finished_runs

Rows = Mapping[str, dict[str, Any]]


class Step(Protocol):
    """What follows on the measurements so far: a grown plan, or None where the search is done."""

    @property
    def plan(self) -> Plan | None: ...


S = TypeVar("S", bound=Step, covariant=True)
T = TypeVar("T", bound=Step)


class Search(Protocol[S]):
    """Chooses what to measure from the rows of what it chose before, and from nothing else."""

    @property
    def plan(self) -> Plan: ...

    def step(self, plan: Plan, rows: Rows) -> S:
        """Return what follows on `rows`, the measurements of `plan` by scenario id."""


@dataclass(frozen=True)
class Searched(Generic[T]):
    """The grown plan, the report on all of it, the last step and the rows it was chosen from."""

    plan: Plan
    report: SweepReport
    last: T
    rows: Rows


def run_search(
    search: Search[T],
    sweep_of: Callable[[Plan], Sweep],
    folder: Path,
    tell: Callable[[T], None] = lambda step: None,
) -> Searched[T]:
    """Measure until the search is done; each step is told before it is measured."""
    plan, rows = search.plan, dict[str, dict[str, Any]]()
    report = SweepReport()
    measuring_s = wall_s = 0.0
    notes: Counter[str] = Counter()
    while True:
        step = search.step(plan, rows)
        tell(step)
        if step.plan is None:
            break
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
    return Searched(plan, report, step, rows)
