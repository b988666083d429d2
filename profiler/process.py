"""Run an outside tool so that nothing of it outlives the call.

A profiler starts daemons of its own: `nsys profile` puts its agent and the profiled program each
into a new session, where a signal to the process group does not reach them. So every run carries
a mark in its environment, which all descendants inherit, and the end of a run is by mark.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from costprof.core.errors import ToolError

MARK_VARIABLE = "COSTPROF_PROCESS_MARK"

_TAIL_BYTES = 65536
_TERM_GRACE_S = 3.0
_KILL_GRACE_S = 5.0
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Completed:
    """How a tool ended. `stdout` and `stderr` hold the last 64 KiB of each.

    `returncode` is negative for a signal, as in `subprocess`; after a time-out it is that of the
    killed process and `timed_out` is true.
    """

    args: tuple[str, ...]
    returncode: int
    timed_out: bool
    wall_s: float
    stdout: str
    stderr: str

    @property
    def succeeded(self) -> bool:
        """True if the tool ended by itself with code 0."""
        return self.returncode == 0 and not self.timed_out

    @property
    def last_words(self) -> str:
        """The last line the tool printed, on standard error if it printed any there."""
        for stream in (self.stderr, self.stdout):
            lines = [line.strip() for line in stream.replace("\r", "\n").splitlines()]
            for line in reversed(lines):
                if line:
                    return line[:300]
        return ""


def run_tool(
    args: Sequence[str | os.PathLike[str]],
    *,
    timeout_s: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    logs: Path | None = None,
    mark: str | None = None,
    progress: Path | None = None,
) -> Completed:
    """Run `args` without a shell and wait; at the time-out or on Ctrl-C end all it started.

    Args:
        args: Program and arguments.
        timeout_s: Seconds before it is ended: SIGTERM first, SIGKILL three seconds later.
        cwd: Folder to run in.
        env: Whole environment, by default this process's.
        logs: Folder that keeps `stdout.log` and `stderr.log`; by default they are temporary.
        mark: Names the run for `end_marked_processes`, by default a random text. Give one and
            write it down first to be able to clean up after your own process was killed.
        progress: A file that grows as the tool gets on: `timeout_s` then counts from the last time
            it did.

    Raises:
        ToolError: the program cannot be started at all.
    """
    command = tuple(os.fspath(arg) for arg in args)
    run_mark = mark or uuid.uuid4().hex
    environment = {**(os.environ if env is None else env), MARK_VARIABLE: run_mark}
    with contextlib.ExitStack() as stack:
        if logs is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="costprof-log-")))
        else:
            folder = logs
            folder.mkdir(parents=True, exist_ok=True)
        # Files, not pipes: a daemon that keeps a pipe open would keep us waiting.
        out = stack.enter_context((folder / "stdout.log").open("wb"))
        err = stack.enter_context((folder / "stderr.log").open("wb"))
        began = time.monotonic()
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=cwd,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise ToolError(
                f"{command[0]} cannot be started ({error.strerror or error})",
                "it was not run",
                "check that it is installed and on PATH",
            ) from error
        timed_out = False
        try:
            timed_out = not _wait(process, timeout_s, progress)
        finally:
            try:
                _end(process, run_mark)
            except KeyboardInterrupt:  # a second Ctrl-C: no more patience, but no leftovers
                process.kill()
                end_marked_processes(run_mark)
                raise
        return Completed(
            args=command,
            returncode=process.returncode,
            timed_out=timed_out,
            wall_s=time.monotonic() - began,
            stdout=_tail(folder / "stdout.log"),
            stderr=_tail(folder / "stderr.log"),
        )


def end_marked_processes(mark: str, *, grace_s: float = 0.0) -> int:
    """Kill every process of this user whose environment carries `mark`; return how many.

    Waits up to `grace_s` seconds for them to leave by themselves, and up to five seconds for the
    killed to be gone. Where there is no `/proc` nothing is found.
    """
    patience = time.monotonic() + grace_s
    while (left := set(_marked(mark))) and time.monotonic() < patience:
        time.sleep(_POLL_S)
    killed: set[int] = set()
    deadline = time.monotonic() + _KILL_GRACE_S
    while left and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        killed |= left
        time.sleep(_POLL_S)
        left = set(_marked(mark))
    return len(killed)


def _wait(process: subprocess.Popen[bytes], timeout_s: float, progress: Path | None) -> bool:
    """Wait for the end of `process`; False after `timeout_s` with neither end nor progress."""
    began = time.time()
    while True:
        quiet_s = time.time() - max(began, _changed_at(progress))
        if quiet_s >= timeout_s:
            return False
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s - quiet_s)
            return True


def _changed_at(path: Path | None) -> float:
    try:
        return path.stat().st_mtime if path is not None else 0.0
    except OSError:
        return 0.0


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """End `process`, if it still runs, and whatever it left behind."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_TERM_GRACE_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        end_marked_processes(mark)
    else:
        # A tool that has ended well may have a daemon that is just about to leave.
        end_marked_processes(mark, grace_s=1.0)


def _marked(mark: str) -> Iterator[int]:
    """Ids of the running processes that carry `mark`, this one left out."""
    wanted = f"{MARK_VARIABLE}={mark}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        pid = int(entry.name)
        if pid == os.getpid():
            continue
        try:
            # Empty for a zombie, which is as good as gone.
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if wanted in environment.split(b"\0"):
            yield pid


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        return file.read().decode("utf-8", errors="replace")
