"""Poll a device from a process of its own, so that the workload's process is not in the way.

    python -m costprof.profiler.energy.sampler READER DEVICE FILE PERIOD_S

`READER` is the `module:function` that opens `DEVICE`. It writes a trace until its standard input
ends, which it also does when the process that started it is killed.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from costprof.core.errors import CostprofError, ToolError
from costprof.profiler.energy.nvml import Conditions, Reader
from costprof.profiler.energy.trace import HEADER, Sample, sample_line
from costprof.profiler.importing import importing_environment
from costprof.profiler.process import MARK_VARIABLE, end_marked_processes

PERIOD_S = 0.005
"""Fast enough to tell a tick of 20 ms to a few of them."""

_SLOW_EVERY = 10  # of so many polls one looks at what changes slowly
_START_S = 30.0
_STOP_S = 5.0
_POLL_S = 0.02


def sample(
    reader: Reader,
    write: Callable[[Sample], object],
    *,
    now: Callable[[], float],
    wait: Callable[[float], bool],
    period_s: float = PERIOD_S,
) -> None:
    """Poll `reader` every `period_s` and hand each sample to `write`.

    Args:
        reader: What to ask.
        write: Takes the samples.
        now: Seconds of the clock that dates them.
        wait: Waits so many seconds; returns true when it is time to stop.
        period_s: From one poll to the next.
    """
    index = 0
    while True:
        began = now()
        write(_poll(reader, now, slow=index % _SLOW_EVERY == 0))
        index += 1
        if wait(max(0.0, period_s - (now() - began))):
            return


def _poll(reader: Reader, now: Callable[[], float], *, slow: bool) -> Sample:
    before = now()
    counter_mj = reader.counter_mj()
    after = now()
    power_w = reader.power_w()
    slowly = reader.conditions() if slow else Conditions()
    return Sample(
        time_s=(before + after) / 2,
        counter_mj=counter_mj,
        power_w=power_w,
        **slowly._asdict(),
    )


def open_reader(name: str, device: str) -> Reader:
    """Open `device` with the function `name`, a `module:function`."""
    module, function = name.split(":")
    reader: Reader = getattr(importlib.import_module(module), function)(device)
    return reader


class Sampling:
    """A sampler that runs. `problem` says, once it was stopped, how it failed, or is None."""

    def __init__(self, process: subprocess.Popen[bytes], errors: Path) -> None:
        self._process = process
        self._errors = errors
        self.problem: str | None = None

    def ended_early(self) -> str | None:
        """Return how it ended by itself, None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        said = [line for line in self._errors.read_text(errors="replace").splitlines() if line]
        how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return f"the power sampler {how}" + (f" ({said[-1][:200]})" if said else "")

    def stop(self) -> None:
        """Tell it to stop and wait for it; note as `problem` that it had stopped before."""
        self.problem = self.problem or self.ended_early()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.problem = self.problem or "the power sampler hung and was killed"
        finally:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def sampling(
    reader: str, device: str, path: Path, *, mark: str, period_s: float = PERIOD_S
) -> Iterator[Sampling]:
    """Sample `device` into the file `path` while the block runs; nothing of it outlives the block.

    Args:
        reader: `module:function` that opens the device.
        device: What it is given.
        path: The trace file.
        mark: Name of the process for `end_marked_processes`.
        period_s: From one poll to the next.

    Raises:
        ToolError: it did not begin to write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", __name__, reader, device, str(path), str(period_s)]
    with tempfile.TemporaryDirectory(prefix="costprof-sampler-") as folder:
        errors = Path(folder) / "stderr"
        with errors.open("wb") as stderr:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env={**importing_environment(), MARK_VARIABLE: mark},
                # Ctrl-C in a terminal reaches us alone; we end it.
                start_new_session=True,
            )
        running = Sampling(process, errors)
        try:
            _await_first_sample(running, path)
            yield running
        finally:
            running.stop()
            end_marked_processes(mark)


def _await_first_sample(running: Sampling, path: Path) -> None:
    deadline = time.monotonic() + _START_S
    while not (path.is_file() and path.stat().st_size > len(HEADER)):
        problem = running.ended_early()
        if problem is None and time.monotonic() > deadline:
            problem = f"the power sampler wrote nothing in {_START_S:.0f} s"
        if problem is not None:
            raise ToolError(problem, "no energy was measured", "see costprof doctor")
        time.sleep(_POLL_S)


def main(arguments: list[str]) -> int:
    """Sample until standard input ends."""
    name, device, path, period_s = arguments
    try:
        reader = open_reader(name, device)
    except CostprofError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code

    def wait(seconds: float) -> bool:
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        return bool(ready) and not os.read(sys.stdin.fileno(), 1)

    with Path(path).open("w", encoding="ascii", buffering=1) as file:
        file.write(HEADER)
        try:
            sample(
                reader,
                lambda one: file.write(sample_line(one)),
                now=time.monotonic,
                wait=wait,
                period_s=float(period_s),
            )
        finally:
            reader.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
