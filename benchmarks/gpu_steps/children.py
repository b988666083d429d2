"""Run the command line and the other benchmarks as processes of their own.

What they allocate on a GPU is free again when they end.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from gpu_steps.running import Refused

BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parent
_LONGEST = 400


def costprof(*arguments: str, keep: bool = False) -> str:
    """Run the command line; see `child`."""
    return child([sys.executable, "-m", "costprof.cli.main", *arguments], keep=keep)


def script(name: str, *arguments: str, keep: bool = False) -> str:
    """Run another benchmark; see `child`."""
    return child([sys.executable, str(BENCHMARKS / name), *arguments], keep=keep)


def child(command: list[str], *, keep: bool = False) -> str:
    """Run `command`, showing what it says as it comes; return its standard output with `keep`.

    Raises:
        Refused: it did not end well; its last words on standard error.
    """
    last = ""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as kept:
        with subprocess.Popen(
            command,
            stdout=kept if keep else None,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
        ) as process:
            assert process.stderr is not None
            for line in process.stderr:
                sys.stderr.write(line)
                last = line.strip() or last
        if process.returncode != 0:
            raise Refused(last[:_LONGEST] or f"{command[1:3]} ended with {process.returncode}")
        kept.seek(0)
        return kept.read()
