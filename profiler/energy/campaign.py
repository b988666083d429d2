"""All energy trials of a sweep: in random order, cooled down in between, resumable."""

from __future__ import annotations

import contextlib
import logging
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from costprof.core.errors import CostprofError, InputError
from costprof.core.files import remove_partial_files
from costprof.profiler.counters import choose
from costprof.profiler.dataset import read_measurements
from costprof.profiler.energy.nvml import Reader, require_energy
from costprof.profiler.energy.result import MIN_TRIALS, EnergyResult
from costprof.profiler.energy.sampler import open_reader
from costprof.profiler.energy.store import (
    FOLDER,
    merge_energy,
    read_trials,
    write_trials,
)
from costprof.profiler.energy.trial import Bench, run_trial
from costprof.profiler.energy.workload import Phases
from costprof.profiler.plan import Plan
from costprof.profiler.scenario import Scenario

_log = logging.getLogger(__name__)

MAX_TRIALS = 2 * MIN_TRIALS
_MAX_FAILURES = 2
_START_S = 6.0
_TYPICAL_COOL_DOWN_S = 5.0
# Longest period of a counter: windows begin at a random moment of it.
_PERIOD_S = 0.1
_BAND_C = 3.0
_COOL_DOWN_S = 60.0
_LOOK_S = 0.5


class Observer(Protocol):
    """Is told how the trials go on, for progress bars."""

    def trial_begins(self, scenario: Scenario, trial: int) -> None:
        """A trial begins."""

    def trial_ends(self, row: dict[str, Any]) -> None:
        """It is on disk as `row`."""


@dataclass(slots=True)
class EnergyReport:
    """What the trials gave.

    Attributes:
        results: Energy of each scenario that has enough accepted trials.
        waiting: Trials that wait for the file of a wall meter.
        rejected: Why scenarios have no measured energy: their label and the last reason.
        problem: What ended the trials early.
    """

    results: dict[str, EnergyResult] = field(default_factory=dict)
    waiting: int = 0
    rejected: list[str] = field(default_factory=list)
    problem: str | None = None

    def lines(self) -> list[str]:
        """Return the report for people."""
        found = []
        if self.results:
            sources = ", ".join(sorted({result.source for result in self.results.values()}))
            cvs = [result.cv for result in self.results.values()]
            found.append(
                f"energy measured of {len(self.results)} scenarios ({sources}); CV of their "
                f"trials: median {statistics.median(cvs):.1%}, largest {max(cvs):.1%}"
            )
        if self.waiting:
            found.append(
                f"{self.waiting} energy trials wait for the wall meter: "
                "costprof ingest --meter power.csv --out DIR"
            )
        found += [f"no energy of {line}" for line in self.rejected]
        return [*found, self.problem] if self.problem else found


@dataclass(frozen=True)
class Campaign:
    """Trials of `scenarios` on a bench: three accepted ones each, out of at most six."""

    bench: Bench
    scenarios: tuple[Scenario, ...]
    seed: str
    sleep: Callable[[float], None] = time.sleep

    def run(self, observer: Observer) -> EnergyReport:
        """Run every trial that is not on disk yet and merge the energies into `measurements/`.

        What goes wrong with the sampler ends the trials and is reported; timings stay as they are.
        """
        folder = self.bench.folder
        remove_partial_files(folder / FOLDER)
        report = EnergyReport()
        try:
            self._run_rounds(observer)
        except CostprofError as error:
            report.problem = str(error)
        finally:  # after Ctrl-C too: what has its trials is done
            report.results = merge_energy(folder)
        trials = read_trials(folder)
        names = {scenario.scenario_id for scenario in self.scenarios}
        for scenario in self.scenarios:
            rows = trials.get(scenario.scenario_id, [])
            waiting = sum(row["status"] == "waiting" for row in rows)
            report.waiting += waiting
            if scenario.scenario_id not in report.results and not waiting and rows:
                report.rejected.append(f"{scenario.label()}: {_why(rows)}")
        report.results = {n: result for n, result in report.results.items() if n in names}
        return report

    def left(self) -> int:
        """Return how many trials are needed if every one is accepted."""
        trials = read_trials(self.bench.folder)
        return sum(_missing(trials.get(s.scenario_id, [])) for s in self.scenarios)

    def _run_rounds(self, observer: Observer) -> None:
        trials = read_trials(self.bench.folder)
        order = sum(len(rows) for rows in trials.values())
        chance = random.Random(f"{self.seed} {order}")
        with _thermometer(self.bench) as temperature_c:
            coolest_c = temperature_c()
            while pending := [s for s in self.scenarios if _missing(trials.get(s.scenario_id, []))]:
                # Rounds over all scenarios: what drifts with the hours meets all alike.
                chance.shuffle(pending)
                for scenario in pending:
                    rows = trials.setdefault(scenario.scenario_id, [])
                    observer.trial_begins(scenario, len(rows))
                    now_c = temperature_c()
                    if coolest_c is not None and now_c is not None:
                        coolest_c = min(coolest_c, now_c)  # the first reading follows the timing
                    waited_s = self._cool_down(temperature_c, coolest_c)
                    gap_s = chance.uniform(0.0, _PERIOD_S)
                    row = run_trial(self.bench, scenario, len(rows), gap_s)
                    row |= {"run_order": order, "cool_down_s": waited_s}
                    order += 1
                    rows.append(row)
                    write_trials(self.bench.folder, scenario.scenario_id, rows)
                    observer.trial_ends(row)

    def _cool_down(
        self, temperature_c: Callable[[], float | None], coolest_c: float | None
    ) -> float:
        """Wait until the device is about as cool as at the first trial; return the seconds."""
        waited_s = 0.0
        while coolest_c is not None and waited_s < _COOL_DOWN_S:
            now_c = temperature_c()
            if now_c is None or now_c <= coolest_c + _BAND_C:
                break
            self.sleep(_LOOK_S)
            waited_s += _LOOK_S
        return waited_s


def estimate_s(scenarios: int, phases: Phases) -> float:
    """Rough seconds of the trials of so many scenarios, if all are accepted."""
    trial_s = _START_S + phases.total_s + _TYPICAL_COOL_DOWN_S
    return scenarios * MIN_TRIALS * trial_s


def choose_scenarios(plan: Plan, wanted: str) -> tuple[Scenario, ...]:
    """Return the scenarios whose energy is measured: all, or `wanted` spread evenly over the plan.

    Raises:
        InputError: `wanted` is neither "all" nor a whole number of at least 1.
    """
    if wanted == "all":
        return tuple(plan.scenarios)
    try:
        count = int(wanted)
    except ValueError:
        count = 0
    if count < 1:
        raise InputError(
            f"--energy {wanted!r} is no number of scenarios",
            "nothing was measured",
            "give a whole number of at least 1, or all",
        )
    if count == 1:
        whole = choose(plan.scenarios, len(plan.scenarios)) or plan.scenarios
        return (whole[len(whole) // 2],)
    return tuple(choose(plan.scenarios, count) or plan.scenarios[:count])


def measurable(folder: Path, scenarios: tuple[Scenario, ...]) -> tuple[Scenario, ...]:
    """Return those of `scenarios` that the timing runs in `folder` could run."""
    rows = read_measurements(folder).select(["scenario_id", "status"]).to_pylist()
    ran = {row["scenario_id"] for row in rows if row["status"] != "failed"}
    return tuple(scenario for scenario in scenarios if scenario.scenario_id in ran)


def _missing(rows: list[dict[str, Any]]) -> int:
    """How many more accepted trials a scenario needs; 0 also if there is no use in trying."""
    good = sum(row["status"] in ("accepted", "waiting") for row in rows)
    failed = sum(row["status"] == "failed" for row in rows)
    if failed >= _MAX_FAILURES or len(rows) >= MAX_TRIALS:
        return 0
    return max(MIN_TRIALS - good, 0)


def _why(rows: list[dict[str, Any]]) -> str:
    accepted = sum(row["status"] == "accepted" for row in rows)
    reasons = [row["reason"] for row in rows if row["reason"]]
    last = f"; the last one: {reasons[-1]}" if reasons else ""
    return f"{accepted} of {len(rows)} trials accepted, fewer than {MIN_TRIALS}{last}"


@contextlib.contextmanager
def _thermometer(bench: Bench) -> Any:
    """Yield a function that reads the device's temperature, if it has one to read."""
    if bench.power is None:
        yield lambda: None
        return
    reader: Reader = open_reader(bench.power.reader, bench.power.device)

    def temperature_c() -> float | None:
        try:
            return reader.conditions().temp_c
        except Exception as error:  # the driver's own; hours of trials shall not end by it
            _log.debug("the temperature could not be read: %s", error)
            return None

    try:
        require_energy(reader)
        yield temperature_c
    finally:
        reader.close()
