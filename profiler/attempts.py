"""Decide what to measure again: after noise, after a crash, after an unreadable export."""

from __future__ import annotations

import datetime
import math

import numpy as np

from costprof.profiler.plan import Run
from costprof.profiler.results import Calls, RunOutcome
from costprof.profiler.rows import Attempt
from costprof.profiler.scenario import Scenario
from costprof.profiler.spec import TimingSpec
from costprof.profiler.statistics import Summary, badness, quality_problem, summarise

# A scenario that ends its process is tried once more, alone, and then given up.
_CRASHES_ALLOWED = 2
# Found out beforehand, so nothing was captured and nothing failed.
_WAITS = "a call waits for the device"


class Attempts:
    """Bookkeeping of one run: what is still worth a try, and the best seen of each scenario.

    Attributes:
        processes: How many processes have run.
        best: The best attempt at each scenario tried so far, by scenario id.
        tried: How many attempts each scenario has had.
        uncapturable: Scenarios that the next process must not capture in a CUDA graph, and why.
    """

    def __init__(self, run: Run, timing: TimingSpec) -> None:
        self._run = run
        self._timing = timing
        self._crashes: dict[str, int] = {}
        self._raised: set[str] = set()
        self._badness: dict[str, float] = {}
        self.processes = 0
        self.best: dict[str, Attempt] = {}
        self.uncapturable: dict[str, str] = {}
        self.tried: dict[str, int] = {scenario.scenario_id: 0 for scenario in run.scenarios}

    def pending(self) -> list[Scenario]:
        """Scenarios of the next process: suspects of a crash come last and alone."""
        wanted = [s for s in self._run.scenarios if self._worth_a_try(s.scenario_id)]
        calm = [scenario for scenario in wanted if scenario.scenario_id not in self._crashes]
        return calm or wanted[:1]

    def add(self, scenarios: list[Scenario], outcome: RunOutcome, run_id: str) -> None:
        """Take in what one process measured."""
        self.processes += 1
        if outcome.cut_short is not None:
            self._crashes[outcome.cut_short] = self._crashes.get(outcome.cut_short, 0) + 1
        self.uncapturable |= outcome.uncapturable
        self._raised |= outcome.errors.keys()
        for name in (scenario.scenario_id for scenario in scenarios):
            summary, problem = self._judge(name, outcome)
            if summary is None and problem is None:
                continue  # its process died before its turn: not tried yet
            self.tried[name] += 1
            worse = badness(summary, self._timing) if summary else math.inf
            if name not in self.best or worse < self._badness[name]:
                self._badness[name] = worse
                self.best[name] = Attempt(
                    run_id=run_id,
                    summary=summary,
                    problem=problem,
                    threads=outcome.threads,
                    timer=outcome.timers.get(name),
                    copies=outcome.copies.get(name),
                    measured_at=datetime.datetime.now(datetime.UTC),
                    notes=self._notes(name, outcome),
                )

    def _notes(self, name: str, outcome: RunOutcome) -> tuple[str, ...]:
        if outcome.timers.get(name) != "cuda_event":
            return ()
        why = self.uncapturable.get(name, _WAITS)
        return (f"timed by events, the host's part included, not in a CUDA graph: {why}",)

    def _judge(self, name: str, outcome: RunOutcome) -> tuple[Summary | None, str | None]:
        if name in outcome.errors:
            return None, outcome.errors[name]
        if name in outcome.calls and self._complete(outcome.calls[name]):
            wall_us = outcome.calls[name].wall_us
            unseen = int((~(wall_us > 0)).sum())
            if unseen:
                return None, f"{unseen} of {wall_us.size} calls show no kernel and no duration"
            summary = summarise(outcome.calls[name])
            return summary, quality_problem(summary, self._timing)
        if outcome.stopped:
            return None, None  # what stopped it raised an error, or is not captured next time
        if outcome.crash is not None:
            blamed = outcome.cut_short in (None, name)
            return None, outcome.crash if blamed else None
        return None, outcome.unread or "the profiler recorded none of its calls"

    def _complete(self, calls: Calls) -> bool:
        return np.unique(calls.pass_index).size == self._timing.passes

    def _worth_a_try(self, name: str) -> bool:
        best = self.best.get(name)
        if best is None:
            return True
        if best.problem is None or name in self._raised:
            return False  # done, or it raised an error that it would raise again
        if best.summary is None and name in self._crashes:
            return self._crashes[name] < _CRASHES_ALLOWED
        return self.tried[name] <= self._timing.remeasure
