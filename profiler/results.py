"""Read what a run script wrote: which scenarios finished, failed, or were cut short."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costprof.profiler.cold import Copies

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Calls:
    """Timed calls of one scenario in one process, in order; arrays have one entry per call.

    `kernel_sum_us` and `kernels` are NaN where the backend does not see kernels. An entry is the
    mean over `calls_per_sample` consecutive calls.
    """

    wall_us: Floats
    kernel_sum_us: Floats
    kernels: Floats
    pass_index: NDArray[np.int64]
    calls_per_sample: int = 1


@dataclass(slots=True)
class RunOutcome:
    """What one process measured.

    `cut_short` is the scenario that was being measured when the process died, if it did; `crash`
    then says how. `unread` says why the timings of a finished process could not be had. `stopped`
    means that the process ended itself, because a scenario had made its device unusable: those it
    had not come to are not to blame. `timers` says what timed each scenario, `copies` how many
    copies of its weights there were in the pass that had fewest, `uncapturable` which of them could
    not be captured in a CUDA graph, and why.
    """

    calls: dict[str, Calls] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    timers: dict[str, str] = field(default_factory=dict)
    copies: dict[str, Copies] = field(default_factory=dict)
    uncapturable: dict[str, str] = field(default_factory=dict)
    stopped: bool = False
    measuring_s: float = 0.0
    threads: int | None = None
    cut_short: str | None = None
    crash: str | None = None
    unread: str | None = None


def notes_path(folder: Path, source: str) -> Path:
    """Where the process called `source` writes its notes in the dataset `folder`."""
    return folder / "logs" / f"{source}.jsonl"


def read_results(path: Path) -> tuple[RunOutcome, list[dict[str, Any]]]:
    """Return the outcome without timings, and the `done` notes they can be taken from."""
    outcome = RunOutcome()
    done: list[dict[str, Any]] = []
    ended = False
    for note in read_notes(path):
        match note["event"]:
            case "began":
                outcome.threads = int(note["threads"])
            case "start":
                outcome.cut_short = note["scenario_id"]
            case "done":
                outcome.cut_short = None
                if "error" in note:
                    outcome.errors[note["scenario_id"]] = note["error"]
                else:
                    outcome.measuring_s += note["measuring_s"]
                    outcome.timers[note["scenario_id"]] = note["timer"]
                    _keep_fewest(outcome.copies, note)
                    done.append(note)
            case "uncapturable":
                outcome.cut_short = None
                outcome.uncapturable[note["scenario_id"]] = note["reason"]
            case "stopped":
                outcome.stopped = True
            case "ended":
                ended = True
    if not ended and not outcome.stopped:
        outcome.crash = "the process ended before its run was over"
    return outcome, [note for note in done if note["scenario_id"] not in outcome.errors]


def _keep_fewest(copies: dict[str, Copies], note: dict[str, Any]) -> None:
    name = note["scenario_id"]
    found = Copies(int(note["copies"]), int(note["copy_bytes"]))
    if name not in copies or found.number < copies[name].number:
        copies[name] = found


def calls_from_notes(notes: list[dict[str, Any]]) -> dict[str, Calls]:
    """Join the passes of each scenario whose timings the script itself took."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for note in notes:
        grouped.setdefault(note["scenario_id"], []).append(note)
    return {name: _join(passes) for name, passes in grouped.items()}


def _join(passes: list[dict[str, Any]]) -> Calls:
    def column(key: str) -> Floats:
        parts = [note.get(key, [np.nan] * note["count"]) for note in passes]
        return np.asarray([value for part in parts for value in part], dtype=np.float64)

    index = [np.full(note["count"], note["pass_index"], dtype=np.int64) for note in passes]
    return Calls(
        wall_us=column("wall_us"),
        kernel_sum_us=column("kernel_sum_us"),
        kernels=column("kernels"),
        pass_index=np.concatenate(index),
        calls_per_sample=max(note.get("calls_per_sample", 1) for note in passes),
    )


def read_notes(path: Path) -> list[dict[str, Any]]:
    """Return the notes a process wrote, one JSON object a line, up to a line torn off."""
    if not path.is_file():
        return []
    notes = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            notes.append(json.loads(line))
        except json.JSONDecodeError:  # the line being written when the process died
            break
    return notes
