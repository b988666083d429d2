"""The sampler's real process: what it writes, how it stops, and that nothing of it stays."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from costprof.core.errors import ToolError
from costprof.profiler.energy.sampler import sampling
from costprof.profiler.energy.trace import HEADER, Sample, read_trace, sample_line
from costprof.profiler.process import end_marked_processes

READER = "readers_for_energy:Reader"
TICK_S = 0.05
"""Of the reader's counter, see conftest."""


def await_that(condition: Callable[[], bool]) -> None:
    """Wait for what comes sooner or later, however busy the machine is."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


def test_it_polls_fast_enough_for_ticks_and_stops_when_told(
    tmp_path: Path, device_modules: Path
) -> None:
    path = tmp_path / "trace.csv"
    began_s = time.monotonic()
    with sampling(READER, "0", path, mark="sampler-test-1") as running:
        await_that(lambda: read_trace(path).time_s.size >= 200)
    ended_s = time.monotonic()
    assert running.problem is None
    trace = read_trace(path)
    gaps_s = np.diff(trace.time_s)
    assert (gaps_s > 0).all()
    assert began_s < trace.time_s[0] < trace.time_s[-1] < ended_s, "the machine's monotonic clock"
    # The median does not mind that another process has the core now and then.
    assert np.median(gaps_s) < 0.5 * TICK_S, "a tick lies between two polls"
    time_s, counter_mj = trace.known("counter_mj")
    assert time_s.size == trace.time_s.size
    assert trace.known("temp_c")[0].size == -(-trace.time_s.size // 10), "every tenth poll"
    ticks = np.flatnonzero(np.diff(counter_mj)) + 1
    assert ticks.size >= 2
    # Between ticks stands what 50 W make of the time between the polls that saw them: a poll is
    # dated by its middle, so each edge is off by no more than the gap before it.
    first, last = ticks[0], ticks[-1]
    mj = counter_mj[last] - counter_mj[first]
    doubt_s = gaps_s[first - 1] + gaps_s[last - 1]
    assert mj == pytest.approx(50e3 * (time_s[last] - time_s[first]), abs=50e3 * doubt_s)
    assert end_marked_processes("sampler-test-1") == 0


def test_its_death_is_a_named_failure(tmp_path: Path, device_modules: Path) -> None:
    path = tmp_path / "trace.csv"
    with sampling("readers_for_energy:Dying", "0", path, mark="sampler-test-2") as running:
        await_that(lambda: running.ended_early() is not None)
    assert running.problem == "the power sampler ended with code 9"
    assert read_trace(path).time_s.size > 10, "what it wrote is kept"


def test_a_refused_device_is_one_line(tmp_path: Path, device_modules: Path) -> None:
    with (
        pytest.raises(ToolError, match=r"the power sampler ended with code 3 \(this reader is ref"),
        sampling("readers_for_energy:refused", "0", tmp_path / "t.csv", mark="sampler-test-3"),
    ):
        pass


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
def test_it_does_not_outlive_its_parent(
    tmp_path: Path, device_modules: Path, kind: signal.Signals
) -> None:
    path = tmp_path / "trace.csv"
    parent = (
        "import signal, sys, time\n"
        "from pathlib import Path\n"
        "from costprof.profiler.energy.sampler import sampling\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"with sampling({READER!r}, '0', Path(sys.argv[1]), mark='sampler-test-4') as running:\n"
        "    print(running._process.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    sampler = int(process.stdout.readline())
    assert _runs(sampler)
    process.send_signal(kind)
    process.communicate(timeout=20)
    deadline = time.monotonic() + 10
    while _runs(sampler):
        assert time.monotonic() < deadline, "the sampler outlived its parent"
        time.sleep(0.05)


def test_a_torn_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    whole = sample_line(Sample(time_s=12.5, counter_mj=123_456_789_012, power_w=70.25, throttle=4))
    path.write_text(HEADER + whole + sample_line(Sample(time_s=13.0, counter_mj=5.0))[:9])
    trace = read_trace(path)
    assert trace.time_s.tolist() == [12.5]
    assert trace.counter_mj.tolist() == [123_456_789_012]
    assert trace.throttle.tolist() == [4]
    assert np.isnan(trace.temp_c).all()
    assert read_trace(tmp_path / "none.csv").time_s.size == 0


def _runs(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except OSError:
        return False
