"""Run a generated script with this Python, and say how it ended."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from costprof.profiler.process import Completed
from costprof.profiler.results import RunOutcome


def script_command(script: Path, results: Path) -> list[str]:
    """Return the command that runs `script` and has it write to `results`."""
    return [sys.executable, str(script), str(results)]


def note_crash(outcome: RunOutcome, completed: Completed, timeout_s: float) -> None:
    """Make the way the process ended part of `outcome`, where it did not end well.

    One that stopped because of a broken device may well crash on its way out.
    """
    if outcome.stopped:
        return
    if completed.timed_out:
        outcome.crash = f"not done within {timeout_s:.0f} s"
    elif completed.returncode < 0:
        outcome.crash = f"the process died of {signal.Signals(-completed.returncode).name}"
    elif outcome.crash is not None:
        # Standard error alone: a profiler talks of its own affairs on standard output.
        lines = [line.strip() for line in completed.stderr.splitlines() if line.strip()]
        if lines:
            outcome.crash = f"the process failed: {lines[-1][:300]}"
