"""Backends whose scripts take the time themselves: clocks and events, or torch.profiler."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from costprof.profiler.backends.process import note_crash, script_command
from costprof.profiler.importing import importing_environment
from costprof.profiler.process import run_tool
from costprof.profiler.results import RunOutcome, calls_from_notes, notes_path, read_results
from costprof.profiler.scripts import Mode


@dataclass(frozen=True, slots=True)
class SelfTimed:
    """A backend that needs no tool but torch."""

    name: str
    mode: Mode
    tool_version: str

    def prove(self) -> None:
        """A clock needs no proof."""

    def measure(
        self, script: Path, *, source: str, folder: Path, timeout_s: float, mark: str
    ) -> RunOutcome:
        """Run `script`; see `Backend.measure`."""
        notes = notes_path(folder, source)
        notes.parent.mkdir(parents=True, exist_ok=True)
        completed = run_tool(
            script_command(script, notes),
            timeout_s=timeout_s,
            env=importing_environment(),
            logs=notes.with_suffix(""),
            mark=mark,
        )
        outcome, done = read_results(notes)
        note_crash(outcome, completed, timeout_s)
        outcome.calls = calls_from_notes(done)
        return outcome


def inprocess_backend() -> SelfTimed:
    """CUDA graphs and events on a GPU, the monotonic clock on a CPU."""
    return SelfTimed("inprocess", "clock", _torch_version())


def torch_profiler_backend() -> SelfTimed:
    """torch.profiler: CUPTI kernel times on a GPU, operator times on a CPU."""
    return SelfTimed("torch-profiler", "profiler", _torch_version())


def _torch_version() -> str:
    return "torch " + importlib.metadata.version("torch")
