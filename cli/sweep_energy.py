"""`costprof sweep --energy`: what is asked for, the trials with a progress bar, the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costprof.core.errors import InputError, ToolError

if TYPE_CHECKING:
    from costprof.core.device import DeviceFingerprint
    from costprof.profiler.energy.campaign import EnergyReport
    from costprof.profiler.energy.trial import Power
    from costprof.profiler.energy.workload import Phases
    from costprof.profiler.plan import Plan
    from costprof.profiler.scenario import Scenario

MIN_WINDOW_S = 2.0


@dataclass(frozen=True)
class EnergyOptions:
    """What the command line asks for: how many scenarios, read by what, how long a window."""

    wanted: str
    phases: Phases
    by_meter: bool

    def scenarios(self, plan: Plan) -> tuple[Scenario, ...]:
        """Return those of `plan` whose energy is wanted."""
        from costprof.profiler.energy.campaign import choose_scenarios

        return choose_scenarios(plan, self.wanted)

    def estimated_s(self, plan: Plan) -> float:
        """Rough seconds of the trials of `plan`."""
        from costprof.profiler.energy.campaign import estimate_s

        return estimate_s(len(self.scenarios(plan)), self.phases)


def energy_options(
    plan: Plan, wanted: str | None, by_meter: bool, window_s: float | None
) -> EnergyOptions | None:
    """Return the options, None without --energy.

    Raises:
        InputError: they do not go together.
    """
    if wanted is None:
        if by_meter or window_s is not None:
            raise InputError(
                "--energy-meter and --energy-window say how energy is measured",
                "but none is asked for",
                "add --energy N, or --energy all",
            )
        return None
    from costprof.profiler.energy.workload import meter_phases, nvml_phases

    if window_s is not None and not window_s >= MIN_WINDOW_S:
        raise InputError(
            f"--energy-window is {window_s:g} s",
            "a window that short says nothing true",
            f"give at least {MIN_WINDOW_S:g} s",
        )
    phases = meter_phases(window_s) if by_meter else nvml_phases(window_s)
    options = EnergyOptions(wanted, phases, by_meter)
    options.scenarios(plan)  # refuses a number it cannot read, before anything is measured
    return options


def power_source(options: EnergyOptions | None, device: str) -> Power | None:
    """Return where power is read, before anything is measured; None: by a wall meter, or not.

    Raises:
        ToolError: this device offers nothing that energy can be measured from.
    """
    if options is None or options.by_meter:
        return None
    from costprof.profiler.energy.trial import Power

    if device != "cuda":
        raise ToolError(
            "a CPU here has no energy counter",
            "nothing was measured",
            "leave --energy out (energy is then modelled), or log a wall meter and add "
            "--energy-meter",
        )
    from costprof.core.device import gpu_uuid
    from costprof.profiler.energy.nvml import OPEN_NVML, open_nvml, require_energy

    uuid = gpu_uuid()
    reader = open_nvml(uuid)
    try:
        require_energy(reader)
    finally:
        reader.close()
    return Power(OPEN_NVML, uuid)


def measure_energy(
    options: EnergyOptions, power: Power | None, plan: Plan, out: Path, device: DeviceFingerprint
) -> EnergyReport:
    """Run the trials that are left, showing how they go on."""
    from costprof.profiler.energy.campaign import Campaign, measurable
    from costprof.profiler.energy.trial import Bench

    campaign = Campaign(
        bench=Bench(
            folder=out, device=device, timing=plan.timing, phases=options.phases, power=power
        ),
        scenarios=measurable(out, options.scenarios(plan)),
        seed=plan.plan_id,
    )
    with _Bar(campaign.left()) as bar:
        return campaign.run(bar)


class _Bar:
    """A progress bar of trials; a rejected one is followed by another, so the total may grow."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("energy", total=total)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def trial_begins(self, scenario: Scenario, trial: int) -> None:
        text = f"energy, trial {trial + 1}: {scenario.label()}"
        self._progress.update(self._task, description=text[:60])

    def trial_ends(self, row: dict[str, Any]) -> None:
        if row["status"] in ("accepted", "waiting"):
            self._progress.advance(self._task)
        else:
            self._progress.console.print(
                f"trial {row['trial'] + 1} {row['status']}: {row['reason']}", markup=False
            )
