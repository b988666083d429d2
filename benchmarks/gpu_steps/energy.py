"""Energy of a few scenarios that are compared with each other, measured there and back.

The trials of scenarios A and B are run in the order A B B A A B, so that a drift of the room, the
fan or the board falls on both alike. Each trial is on disk when it ends: what was cut off goes on
where it stopped.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costprof.cli.sweep_energy import energy_options, power_source
from costprof.core.device import DeviceFingerprint
from costprof.profiler.energy.campaign import Campaign, measurable
from costprof.profiler.energy.sampler import open_reader
from costprof.profiler.energy.store import merge_energy, read_trials, write_trials
from costprof.profiler.energy.trial import Bench, Power, run_trial
from costprof.profiler.energy.workload import nvml_phases
from costprof.profiler.journal import sweep_lock
from costprof.profiler.kernels import default_kernel_name
from costprof.profiler.plan import Plan
from costprof.profiler.scenario import Scenario
from gpu_steps.running import Refused

SCENARIO_S = 75.0  # three trials
_TORCH = "torch_grouped_mm:"
_GAP_S = 0.1  # the longest period of a counter: windows begin at a random moment of it
_BAND_C, _COOL_DOWN_S, _LOOK_S = 3.0, 60.0, 0.5


@dataclass(frozen=True)
class Wanted:
    """Names a cold scenario of a model's sweep, by a kernel's default tiles.

    `distribution` of a layer may be `few` or `more`: as many active experts as a token has, or four
    times as many (or the most that the sweep has below all of them).
    """

    op: str
    tokens: int
    distribution: str | None = None
    by_torch: bool = False

    def find(self, plan: Plan) -> Scenario:
        """Return the scenario of `plan` that is meant.

        Raises:
            Refused: the plan has none.
        """
        found = [scenario for scenario in plan.scenarios if self._fits(scenario, plan)]
        if self.distribution in ("few", "more"):
            found.sort(key=_active)
            found = found[:1] if self.distribution == "few" else found[:3][-1:]
        if not found:
            raise Refused(f"the sweep of {plan.name} has no scenario {self}")
        return found[0]

    def _fits(self, scenario: Scenario, plan: Plan) -> bool:
        kernel = scenario.kernel
        if (scenario.op, scenario.tokens, scenario.cache_state) != (self.op, self.tokens, "cold"):
            return False
        if kernel.config:
            return False
        if self.by_torch:
            if _TORCH not in kernel.name:
                return False
        elif kernel.name != default_kernel_name(scenario.expert, scenario.op, plan.device):
            return False
        if scenario.layer is None:
            return True
        if self.distribution in ("few", "more"):
            return scenario.layer.distribution.startswith("active-")
        return scenario.layer.distribution == self.distribution


def _active(scenario: Scenario) -> int:
    return sum(count > 0 for count in scenario.layer.counts) if scenario.layer else 0


def there_and_back(size: int, index: int) -> int:
    """Whose turn the trial `index` is, among `size`: A B B A A B …

    >>> [there_and_back(3, index) for index in range(7)]
    [0, 1, 2, 2, 1, 0, 0]
    """
    lap, place = divmod(index, size)
    return place if lap % 2 == 0 else size - 1 - place


def whose_turn(trials: Sequence[int], wanted: Sequence[int]) -> int | None:
    """Who runs next of those that had so many `trials` and need `wanted` more; None: nobody."""
    if not any(wanted):
        return None
    index = sum(trials)
    while not wanted[there_and_back(len(trials), index)]:
        index += 1
    return there_and_back(len(trials), index)


def measure_energy(
    folder: Path, plan: Plan, device: DeviceFingerprint, scenarios: Sequence[Scenario]
) -> dict[str, Any]:
    """Measure the energy of `scenarios` of the dataset `folder`, and return what came of it.

    Raises:
        Refused: none of them has an energy, or the trials ended early.
        CostprofError: there is nothing to read power from, or no dataset.
    """
    options = energy_options(plan, "all", False, None)
    assert options is not None
    bench = Bench(
        folder=folder,
        device=device,
        timing=plan.timing,
        phases=nvml_phases(),
        power=power_source(options, plan.device),
    )
    return measure_there_and_back(bench, scenarios)


def measure_there_and_back(bench: Bench, scenarios: Sequence[Scenario]) -> dict[str, Any]:
    """Run the trials that are left, merge them into `measurements/`, and return the energies.

    Raises:
        Refused: see `measure_energy`.
    """
    folder = bench.folder
    ran = measurable(folder, tuple(scenarios))
    if not ran:
        raise Refused("none of the scenarios could be timed")
    campaign = Campaign(bench=bench, scenarios=ran, seed="there and back")
    with sweep_lock(folder):
        try:
            _run_trials(bench, ran)
        finally:  # after Ctrl-C too: what has its trials is merged
            merge_energy(folder)
        report = campaign.run(_Silent())
    if report.problem is not None or not report.results:
        raise Refused("; ".join([*report.rejected, *filter(None, [report.problem])]))
    return {
        "device": bench.device.to_dict(),
        "order": "there and back",
        "scenarios": [
            {
                "scenario_id": scenario.scenario_id,
                "label": scenario.label(),
                "kernel": scenario.kernel.name,
                "source": energy.source,
                "trials": energy.trials,
                "energy_active_mj": energy.active_mj,
                "energy_mj_low": energy.low_mj,
                "energy_mj_high": energy.high_mj,
                "cv": energy.cv,
                "idle_w": energy.idle_w,
                "power_mean_w": energy.power_mean_w,
            }
            for scenario in ran
            if (energy := report.results.get(scenario.scenario_id)) is not None
        ],
        "without": [
            *report.rejected,
            *(f"{s.label()}: its timing failed" for s in scenarios if s not in ran),
        ],
    }


class _Silent:
    """No progress bar."""

    def trial_begins(self, scenario: Scenario, trial: int) -> None: ...

    def trial_ends(self, row: dict[str, Any]) -> None: ...


def _run_trials(bench: Bench, scenarios: Sequence[Scenario]) -> None:
    chance = random.Random()
    with _thermometer(bench.power) as temperature_c:
        coolest_c = temperature_c()
        while True:
            trials = read_trials(bench.folder)
            rows = [trials.get(scenario.scenario_id, []) for scenario in scenarios]
            turn = whose_turn(
                [len(each) for each in rows],
                [Campaign(bench=bench, scenarios=(s,), seed="").left() for s in scenarios],
            )
            if turn is None:
                return
            scenario, mine = scenarios[turn], rows[turn]
            waited_s = _cool_down(temperature_c, coolest_c)
            row = run_trial(bench, scenario, len(mine), chance.uniform(0.0, _GAP_S))
            order = sum(len(each) for each in trials.values())
            row |= {"run_order": order, "cool_down_s": waited_s}
            write_trials(bench.folder, scenario.scenario_id, [*mine, row])
            why = f": {row['reason']}" if row.get("reason") else ""
            print(f"trial {len(mine) + 1} of {scenario.label()}: {row['status']}{why}", flush=True)


def _cool_down(temperature_c: Callable[[], float | None], coolest_c: float | None) -> float:
    """Wait, a minute at most, until the device is about as cool as at first; return the seconds."""
    waited_s = 0.0
    while coolest_c is not None and waited_s < _COOL_DOWN_S:
        now_c = temperature_c()
        if now_c is None or now_c <= coolest_c + _BAND_C:
            break
        time.sleep(_LOOK_S)
        waited_s += _LOOK_S
    return waited_s


@contextlib.contextmanager
def _thermometer(power: Power | None) -> Iterator[Callable[[], float | None]]:
    if power is None:
        yield lambda: None
        return
    reader = open_reader(power.reader, power.device)

    def temperature_c() -> float | None:
        try:
            return reader.conditions().temp_c
        except Exception:  # the driver's own; the trials before it shall not be lost
            return None

    try:
        yield temperature_c
    finally:
        reader.close()
