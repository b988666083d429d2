"""The progress bar of a sweep: what is measured counts, as it is measured."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from costprof.profiler.plan import Plan, Run

_POLL_S = 0.5
_DONE = b'"event": "done"'


class SweepProgress:
    """Follows the notes a run script writes; one step is one pass over one scenario."""

    def __init__(self, plan: Plan, done: Mapping[str, Any]) -> None:
        self._passes = plan.timing.passes
        total = self._passes * len(plan.scenarios)
        self._before = self._passes * sum(
            len(run.scenarios) for run in plan.runs if run.run_id in done
        )
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("measuring", total=total, completed=self._before)
        self._notes: Path | None = None
        self._extra = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> SweepProgress:
        self._progress.start()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._progress.stop()

    def process_begins(self, run: Run, scenarios: int, notes: Path) -> None:
        """Follow another process; one after the first measures again what was noisy."""
        again = scenarios < len(run.scenarios) or not notes.stem.endswith(".0")
        text = f"measuring {scenarios} again" if again else f"measuring {run.scenarios[0].label()}"
        self._extra = self._passes * len(run.scenarios) if again else 0
        self._notes = notes
        self._progress.update(self._task, description=text[:44])

    def run_ends(self, run: Run, statuses: dict[str, int]) -> None:
        """Advance to the end of the run."""
        self._notes = None
        self._before += self._passes * len(run.scenarios)
        self._progress.update(self._task, completed=self._before)

    def _follow(self) -> None:
        while not self._stop.wait(_POLL_S):
            notes = self._notes
            if notes is not None and not self._extra and notes.is_file():
                steps = notes.read_bytes().count(_DONE)
                self._progress.update(self._task, completed=self._before + steps)
