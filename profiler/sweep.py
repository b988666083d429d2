"""Measure a plan run by run, so that no interruption costs more than the run in flight."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from costprof.core.device import DeviceFingerprint
from costprof.core.errors import CostprofError
from costprof.core.files import remove_partial_files, write_json
from costprof.profiler.attempts import Attempts
from costprof.profiler.backends.base import Backend
from costprof.profiler.dataset import write_measurements
from costprof.profiler.journal import Journal
from costprof.profiler.plan import Plan, Run
from costprof.profiler.process import end_marked_processes
from costprof.profiler.results import RunOutcome, notes_path
from costprof.profiler.rows import EnergyModel, Provenance, measurement_row, row_notes
from costprof.profiler.schema import SCHEMA_VERSION
from costprof.profiler.scripts import write_scripts

_log = logging.getLogger(__name__)

# Folders whose every file is a sweep's own; the one above them may be anybody's.
_OWN_FOLDERS = ("measurements", "kernels", "ranges", "counters", "scripts")


class Observer(Protocol):
    """Is told how a sweep goes on, for progress bars."""

    def process_begins(self, run: Run, scenarios: int, notes: Path) -> None:
        """A process will measure `scenarios` scenarios of `run`, writing to the file `notes`."""

    def run_ends(self, run: Run, statuses: dict[str, int]) -> None:
        """`run` is on disk, with so many scenarios of each status."""


@dataclass(slots=True)
class SweepReport:
    """What a sweep did: scenarios by status, and how its seconds were spent.

    `notes` counts the scenarios measured now by what a reader has to know of them.
    """

    statuses: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    measuring_s: float = 0.0
    wall_s: float = 0.0

    @property
    def measuring_share(self) -> float:
        """Share of the wall time spent inside timed loops."""
        return self.measuring_s / self.wall_s if self.wall_s else 0.0


@dataclass(frozen=True, slots=True)
class Sweep:
    """A plan, a folder and a backend: everything needed to measure."""

    plan: Plan
    folder: Path
    backend: Backend
    device: DeviceFingerprint
    software: dict[str, str]
    energy_model: EnergyModel | None = None

    def run(self, observer: Observer) -> SweepReport:
        """Measure every run of the plan that is not done yet, and report on all of them."""
        journal = Journal(self.folder)
        done = finished_runs(self.plan, self.folder)
        _end_leftovers(journal)
        for name in _OWN_FOLDERS:
            remove_partial_files(self.folder / name)
        write_json(self.folder / "sweep.json", self._description())
        began = time.monotonic()
        report = SweepReport()
        for run in self.plan.runs:
            if run.run_id in done:
                _count(report.statuses, done[run.run_id])
                continue
            statuses = self._measure_run(run, journal, observer, report)
            _count(report.statuses, statuses)
        report.wall_s = time.monotonic() - began
        return report

    def _measure_run(
        self, run: Run, journal: Journal, observer: Observer, report: SweepReport
    ) -> dict[str, int]:
        attempts = Attempts(run, self.plan.timing)
        for name in ("kernels", "ranges"):  # of a sweep that was cut off in this run
            for part in (self.folder / name).glob(f"{run.run_id}.*.parquet"):
                part.unlink()
        while pending := attempts.pending():
            number = attempts.processes
            source = f"{run.run_id}.{number}"
            observer.process_begins(run, len(pending), notes_path(self.folder, source))
            outcome = self._attempt(
                Run(tuple(pending)), run, source, journal, attempts.uncapturable
            )
            report.measuring_s += outcome.measuring_s
            attempts.add(pending, outcome, source)
        provenance = Provenance(
            backend=self.backend.name,
            tool_version=self.backend.tool_version,
            device=self.device,
            software=self.software,
        )
        rows = [
            measurement_row(
                scenario,
                attempts.best[scenario.scenario_id],
                attempts.tried[scenario.scenario_id],
                provenance,
                self.energy_model,
            )
            for scenario in run.scenarios
        ]
        statuses: dict[str, int] = {}
        for row in rows:
            _count(statuses, {row["status"]: 1})
        for scenario in run.scenarios:
            best = attempts.best[scenario.scenario_id]
            for note in row_notes(scenario, best, self.device):
                _count(report.notes, {note.partition(" (")[0]: 1})
        write_measurements(self.folder, run.run_id, rows)
        journal.append("done", run_id=run.run_id, statuses=statuses)
        observer.run_ends(run, statuses)
        return statuses

    def _attempt(
        self,
        subset: Run,
        run: Run,
        source: str,
        journal: Journal,
        uncapturable: Collection[str],
    ) -> RunOutcome:
        timing = self.plan.timing
        script = write_scripts(
            subset,
            self.folder / "scripts",
            self.backend.mode,
            timing,
            self.device,
            uncapturable=uncapturable,
        )
        mark = uuid.uuid4().hex
        journal.append("attempt", run_id=run.run_id, source=source, mark=mark)
        try:
            return self.backend.measure(
                script,
                source=source,
                folder=self.folder,
                timeout_s=timing.timeout_s,
                mark=mark,
            )
        except CostprofError as error:
            _log.debug("%s: %s", source, error)
            return RunOutcome(unread=str(error))

    def _description(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "plan_id": self.plan.plan_id,
            "name": self.plan.name,
            "device": self.device.to_dict(),
            "software": self.software,
            "backend": self.backend.name,
            "timing": self.plan.timing.model_dump(),
            "moes": list(self.plan.moes),
            "scenarios": [scenario.scenario_id for scenario in self.plan.scenarios],
        }


def finished_runs(plan: Plan, folder: Path) -> dict[str, dict[str, int]]:
    """Return the statuses of each run of `plan` that is done: in the journal and on disk."""
    done = Journal(folder).done_runs()
    return {
        run.run_id: done[run.run_id]["statuses"]
        for run in plan.runs
        if run.run_id in done and (folder / "measurements" / f"{run.run_id}.parquet").is_file()
    }


def _end_leftovers(journal: Journal) -> None:
    """End processes of a sweep that was killed: they would disturb what is measured now."""
    for mark in journal.unfinished_marks():
        killed = end_marked_processes(mark)
        if killed:
            _log.warning("ended %d processes left over from a sweep that was killed", killed)


def _count(into: dict[str, int], more: dict[str, int]) -> None:
    for status, number in more.items():
        into[status] = into.get(status, 0) + number
