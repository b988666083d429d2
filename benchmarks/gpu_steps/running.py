"""Run steps in turn: what is done stays done, what fails stops nothing and is named at the end.

A step is done when its result exists, and it leaves one only where it measured what it is for. One
that could not leaves a record beside it, `RESULT.refused.json`, with the reason; a later run tries
again.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from costprof.core.errors import CostprofError
from costprof.core.files import write_json

INTERRUPTED = 130


class Refused(Exception):
    """A step did not get what it is for; the message says why, in one line."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """Something to measure, done when `result` exists; `skip` says why this machine is spared it.

    `run` raises `Refused`, or any other error, where it leaves no result.
    """

    name: str
    result: Path
    expected_s: float
    run: Callable[[], object]
    skip: str | None = None

    @property
    def done(self) -> bool:
        """Whether its result is there."""
        return self.result.exists()

    @property
    def refusal(self) -> Path:
        """Where the reason stands why an earlier run got no result."""
        return self.result.with_name(f"{self.result.name}.refused.json")

    def refused_before(self) -> str | None:
        """The reason why an earlier run got no result, if it did not."""
        try:
            return str(json.loads(self.refusal.read_text(encoding="utf-8"))["refused"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            return f"{self.refusal} cannot be read"


def show(steps: Sequence[Step], only: Collection[str] = ()) -> None:
    """Print how each step stands."""
    for step in steps:
        if only and step.name not in only:
            continue
        if step.done:
            print(f"{step.name}: done before")
        elif step.skip:
            print(f"{step.name}: skipped: {step.skip}")
        else:
            refused = step.refused_before()
            before = f"refused before: {refused}; tried again, " if refused else ""
            print(f"{step.name}: {before}not run, about {step.expected_s:.0f} s")


def run_steps(
    steps: Sequence[Step],
    *,
    only: Collection[str] = (),
    seconds: float = float("inf"),
    now: Callable[[], float] = time.monotonic,
) -> int:
    """Run what is not done; no step that is expected to end after `seconds`.

    Returns:
        0 if all that is wanted is done or skipped, 1 if not, 130 after Ctrl-C.
    """
    began = now()
    waiting: list[str] = []
    failed: dict[str, str] = {}
    for step in steps:
        if only and step.name not in only:
            continue
        spent = now() - began
        if step.done:
            print(f"{step.name}: done before")
        elif step.skip:
            print(f"{step.name}: skipped: {step.skip}")
        elif spent + step.expected_s > seconds:
            print(f"{step.name}: not run, about {step.expected_s:.0f} s")
            waiting.append(step.name)
        else:
            print(f"{step.name}: begins at {spent:.0f} s", flush=True)
            try:
                reason = _attempt(step)
            except KeyboardInterrupt:
                print(f"{step.name}: interrupted; the same command goes on", file=sys.stderr)
                return INTERRUPTED
            if reason is not None:
                failed[step.name] = reason
    if waiting:
        print(f"{len(waiting)} steps wait for the next run")
    for name, reason in failed.items():
        print(f"{name}: refused: {reason}", file=sys.stderr)
    return 1 if waiting or failed else 0


def _attempt(step: Step) -> str | None:
    """Run `step`; return why it has no result, None if it has one."""
    try:
        step.run()
        reason = None if step.done else "it ended without a result"
    except (Refused, CostprofError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
    except Exception as error:  # whatever it is, the other steps go on
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
    if reason is None:
        step.refusal.unlink(missing_ok=True)
        return None
    print(f"{step.name}: refused: {reason}; the others go on", file=sys.stderr)
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_json(step.refusal, {"step": step.name, "refused": reason, "at": at})
    return reason
