"""The command line as tests run it: inside their own process, or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from costprof.cli.main import main


class Outcome(NamedTuple):
    """How a command ended and what it printed."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Outcome]


def runner(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *first: str | Path
) -> Run:
    """Return a runner of `costprof` followed by `first` and the arguments it is called with.

    It runs in this process: importing torch anew costs seconds each.
    """

    def call(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr("sys.argv", ["costprof", *map(str, (*first, *arguments))])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capfd.readouterr()
        code = ended.value.code
        return Outcome(code if isinstance(code, int) else 0, printed.out, printed.err)

    return call


def run_apart(*arguments: str | Path, **environment: str) -> Outcome:
    """Run `costprof` in a process of its own, as a shell would."""
    done = subprocess.run(
        [sys.executable, "-m", "costprof.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
        timeout=300,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
