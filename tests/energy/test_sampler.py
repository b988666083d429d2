"""The sampler's real process: what it writes, how it stops, and that nothing of it stays."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from costprof.core.errors import ToolError
from costprof.profiler.energy.sampler import sampling
from costprof.profiler.energy.trace import HEADER, Sample, read_trace, sample_line
from costprof.profiler.process import end_marked_processes

READER = "readers_for_energy:Reader"


def test_it_polls_fast_enough_for_ticks_and_stops_when_told(
    tmp_path: Path, device_modules: Path
) -> None:
    path = tmp_path / "trace.csv"
    with sampling(READER, "0", path, mark="sampler-test-1") as running:
        time.sleep(1.0)
    assert running.problem is None
    trace = read_trace(path)
    assert trace.time_s.size > 50
    assert (np.diff(trace.time_s) > 0).all()
    assert trace.time_s[0] > time.monotonic() - 60, "it is the machine's monotonic clock"
    _, counter = trace.known("counter_mj")
    ticks = np.count_nonzero(np.diff(counter))
    assert 10 <= ticks <= 25, "20 ticks of 50 ms a second"
    assert trace.known("temp_c")[0].size < trace.time_s.size / 5, "looked at now and then"
    watts = (counter[-1] - counter[0]) / (trace.time_s[-1] - trace.time_s[0]) / 1e3
    assert watts == pytest.approx(50, rel=0.15)
    assert end_marked_processes("sampler-test-1") == 0


def test_its_death_is_a_named_failure(tmp_path: Path, device_modules: Path) -> None:
    path = tmp_path / "trace.csv"
    with sampling("readers_for_energy:Dying", "0", path, mark="sampler-test-2") as running:
        time.sleep(2.5)
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
