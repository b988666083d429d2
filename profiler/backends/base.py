"""What a backend is, and how one is chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from costprof.profiler.results import RunOutcome
from costprof.profiler.scripts import Mode


class Backend(Protocol):
    """Runs a run script in a process of its own and returns the timings of its scenarios."""

    @property
    def name(self) -> str:
        """`nsys`, `torch-profiler` or `inprocess`; the `backend` column."""

    @property
    def tool_version(self) -> str:
        """Version of the tool that timed."""

    @property
    def mode(self) -> Mode:
        """How scripts have to be generated for it."""

    def prove(self) -> None:
        """Prove that it can time anything here, before a sweep relies on it.

        Raises:
            ToolError: it cannot.
        """

    def measure(
        self, script: Path, *, source: str, folder: Path, timeout_s: float, mark: str
    ) -> RunOutcome:
        """Run `script` and collect what it measured; a crash is part of the outcome.

        Args:
            script: The run script.
            source: Name of this attempt in the `source` columns of the dataset.
            folder: The dataset, for backends that add to `kernels/` and `ranges/`.
            timeout_s: Seconds before the process and all it started are killed.
            mark: Name of its processes, see `profiler.process.end_marked_processes`.
        """
