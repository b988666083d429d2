"""The process that keeps one scenario running during a trial, and what it noted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from costprof.core.device import DeviceFingerprint
from costprof.profiler.energy.trace import Progress, Window
from costprof.profiler.plan import Run
from costprof.profiler.results import read_notes
from costprof.profiler.scenario import Scenario
from costprof.profiler.scripts import write_script, write_scripts
from costprof.profiler.spec import TimingSpec

_QUEUED_S = 0.05
_STEP_S = 0.01
_MARK_S = 0.02
_ESTIMATE_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """Seconds of each phase of a trial.

    Attributes:
        idle_s: Doing nothing, before and after the load.
        window_s: What shall be left of the load after its first second is dropped.
        preheat_s: Running before the load that is read begins.
    """

    idle_s: float
    window_s: float
    preheat_s: float = 1.0

    @property
    def load_s(self) -> float:
        """Seconds of the load: its first second is dropped, and a tick at either edge."""
        return self.window_s + 1.3

    @property
    def total_s(self) -> float:
        """Seconds of all phases."""
        return 2 * self.idle_s + self.preheat_s + self.load_s


def nvml_phases(window_s: float | None = None) -> Phases:
    """Return the phases of a trial that NVML reads; a window of 5 s unless another is given."""
    return Phases(idle_s=3.0, window_s=window_s or 5.0)


def meter_phases(window_s: float | None = None) -> Phases:
    """Return the phases for a wall meter that writes once a second; a window of 10 s if not given.

    Idle stretches grow with the window, so that both hold readings enough.
    """
    window_s = window_s or 10.0
    return Phases(idle_s=max(2.5, 0.6 * window_s), window_s=window_s)


@dataclass(frozen=True, slots=True)
class Clocks:
    """The machine's clocks at one moment: monotonic, and Unix time as a wall meter writes it."""

    monotonic_s: float
    unix_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadNotes:
    """What the process wrote; None or empty where it did not come so far.

    `start` and `end` are the clocks when the trial's first phase began and its last one ended.
    """

    progress: Progress
    idle_before: Window | None
    idle_after: Window | None
    start: Clocks | None
    end: Clocks | None
    ready: dict[str, Any]
    capture_error: str | None
    ended: bool


def write_workload(
    scenario: Scenario,
    name: str,
    folder: Path,
    phases: Phases,
    gap_s: float,
    timing: TimingSpec,
    device: DeviceFingerprint,
) -> Path:
    """Write the scripts of one trial called `name` into `folder`; return the one to run."""
    write_scripts(Run((scenario,)), folder, "clock", timing, device)
    path = folder / f"energy-{name}.py"
    write_script(
        path,
        "energy.py.j2",
        {
            "scenario_id": scenario.scenario_id,
            "threads": timing.threads,
            "warmup": timing.warmup,
            "idle_s": phases.idle_s,
            "gap_s": gap_s,
            "preheat_s": phases.preheat_s,
            "load_s": phases.load_s,
            "queued_s": _QUEUED_S,
            "step_s": _STEP_S,
            "mark_s": _MARK_S,
            "estimate_s": _ESTIMATE_S,
        },
        device=scenario.device,
    )
    return path


def read_workload(path: Path) -> WorkloadNotes:
    """Read the notes of a trial's process; what is missing or torn off is left empty."""
    phases: dict[str, tuple[Clocks, Clocks]] = {}
    progress = Progress(np.array([]), np.array([]))
    ready: dict[str, Any] = {}
    capture_error, ended = None, False
    for note in read_notes(path):
        match note["event"]:
            case "not_captured":
                capture_error = str(note["error"])
            case "ready":
                ready = note
            case "phase":
                phases[note["name"]] = (Clocks(**note["start"]), Clocks(**note["end"]))
            case "progress":
                progress = Progress(
                    np.asarray(note["time_s"], dtype=np.float64),
                    np.asarray(note["calls"], dtype=np.float64),
                )
            case "ended":
                ended = True
    windows = {
        name: Window(start.monotonic_s, end.monotonic_s) for name, (start, end) in phases.items()
    }
    edges = list(phases.values())
    return WorkloadNotes(
        progress=progress,
        idle_before=windows.get("idle_before"),
        idle_after=windows.get("idle_after"),
        start=edges[0][0] if edges else None,
        end=edges[-1][1] if edges else None,
        ready=ready,
        capture_error=capture_error,
        ended=ended,
    )
