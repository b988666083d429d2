"""What a sweep has done so far, one JSON line an event, each on disk before the next step.

The journal and the Parquet parts together make a sweep survive `kill -9`: a run counts as done
once its `done` line stands here, which is written after its part was renamed into place. A part
without a line is measured again and replaced, so nothing is lost and nothing counted twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from costprof.core.errors import DatasetError, InputError


class Journal:
    """The file `journal.jsonl` of a sweep folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "journal.jsonl"

    def append(self, event: str, **values: Any) -> None:
        """Add one event and force it to disk."""
        line = json.dumps({"event": event, "at": time.time(), **values}) + "\n"
        with self.path.open("ab") as file:
            if file.tell() and not self._ends_whole():
                line = "\n" + line
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def events(self) -> list[dict[str, Any]]:
        """Return all events; a line torn by a crash is left out."""
        if not self.path.is_file():
            return []
        events = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                event = json.loads(line)
                if isinstance(event, dict) and "event" in event:
                    events.append(event)
        return events

    def done_runs(self) -> dict[str, dict[str, Any]]:
        """Return the `done` event of each finished run."""
        return {event["run_id"]: event for event in self.events() if event["event"] == "done"}

    def unfinished_marks(self) -> list[str]:
        """Return the process marks of attempts and counts that began and never ended."""
        open_marks: dict[str, None] = {}
        for event in self.events():
            if event["event"] in ("attempt", "count"):
                open_marks[event["mark"]] = None
            elif event["event"] in ("done", "counted"):
                open_marks.clear()
        return list(open_marks)

    def _ends_whole(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"


@contextmanager
def sweep_lock(folder: Path) -> Iterator[None]:
    """Hold the folder for one sweep; the lock goes with the process, however it ends.

    Raises:
        InputError: another sweep is writing there.
    """
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"another sweep is writing to {folder}",
                "this one was not started",
                "wait for it, or name another folder",
            ) from error
        yield


def check_folder(folder: Path, plan_id: str, *, backend: str, device: str, resume: bool) -> None:
    """Check that `folder` may take the sweep with `plan_id`, by `backend` on the model `device`.

    Raises:
        InputError: it holds a sweep and `resume` is off, or one of another plan, backend or
            device: rows of two kinds must not mix in one dataset.
        DatasetError: its `sweep.json` is damaged.
    """
    path = folder / "sweep.json"
    if not path.exists():
        if any((folder / name).exists() for name in ("measurements", "journal.jsonl")):
            raise InputError(
                f"{folder} holds measurements but no sweep.json",
                "the sweep was not started",
                "name an empty folder",
            )
        return
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = values["plan_id"]
        before = {"backend": values["backend"], "device": values["device"]["name"]}
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DatasetError(
            f"{path} is damaged", "the sweep cannot go on", "start again in an empty folder"
        ) from error
    if not resume:
        raise InputError(
            f"{folder} already holds a sweep",
            "nothing was measured",
            "add --resume to go on with it, or name another folder",
        )
    if found != plan_id:
        raise InputError(
            f"{folder} holds a sweep of another plan",
            "it cannot be resumed with this one",
            "give the arguments it was started with; if torch or a kernel has changed since, "
            "name another folder",
        )
    for what, now in (("backend", backend), ("device", device)):
        if before[what] != now:
            raise InputError(
                f"{folder} was measured with {what} {before[what]}, this would go on with {now}",
                "rows of two kinds would mix",
                "go on where and as it was started, or name another folder",
            )
