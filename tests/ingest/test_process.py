"""Running outside tools: results, time-outs, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from costprof.core.errors import ToolError
from costprof.profiler.process import MARK_VARIABLE, end_marked_processes, run_tool

# A daemon as nsys makes it: in a session of its own, its parent gone.
_DAEMON = """
    import os, sys, time
    if os.fork():
        {parent}
    os.setsid()
    if os.fork():
        os._exit(0)
    open(sys.argv[1], "w").write(str(os.getpid()))
    time.sleep(60)
"""


def _script(parent: str) -> str:
    return textwrap.dedent(_DAEMON.format(parent=parent))


def _runs(pid: int) -> bool:
    """True unless `pid` is gone or a zombie."""
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except OSError:
        return False


def test_streams_and_code_are_reported() -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    completed = run_tool([sys.executable, "-c", code], timeout_s=20)
    assert (completed.returncode, completed.timed_out) == (3, False)
    assert (completed.stdout, completed.stderr) == ("out\n", "err\n")
    assert not completed.succeeded
    assert completed.last_words == "err"


def test_last_words_come_from_stdout_when_stderr_is_empty() -> None:
    completed = run_tool([sys.executable, "-c", "print('a\\rb\\n')"], timeout_s=20)
    assert completed.succeeded
    assert completed.last_words == "b"


def test_output_is_kept_where_asked_and_only_its_end_is_returned(tmp_path: Path) -> None:
    completed = run_tool(
        [sys.executable, "-c", "print('x' * 100_000)"], timeout_s=20, logs=tmp_path / "logs"
    )
    assert len(completed.stdout) == 65536
    assert (tmp_path / "logs/stdout.log").stat().st_size == 100_001


def test_arguments_reach_the_program_unchanged(tmp_path: Path) -> None:
    hostile = "a b; $(touch boom) `x` 'q' \"r\" *"
    completed = run_tool(
        [sys.executable, "-c", "import sys; print(sys.argv[1])", hostile],
        timeout_s=20,
        cwd=tmp_path,
    )
    assert completed.stdout == hostile + "\n"
    assert list(tmp_path.iterdir()) == []


def test_a_missing_program_is_named() -> None:
    with pytest.raises(
        ToolError, match=r"no-such-tool cannot be started .*; it was not run; check"
    ):
        run_tool(["no-such-tool"], timeout_s=5)


@pytest.mark.parametrize("parent", ["time.sleep(60)", "os._exit(0)"], ids=["timeout", "exit"])
def test_a_daemon_in_its_own_session_does_not_outlive_the_run(tmp_path: Path, parent: str) -> None:
    pid_file = tmp_path / "pid"
    began = time.monotonic()
    completed = run_tool([sys.executable, "-c", _script(parent), str(pid_file)], timeout_s=2.0)
    assert completed.timed_out == ("sleep" in parent)
    assert time.monotonic() - began < 20
    assert not _runs(int(pid_file.read_text(encoding="ascii")))


def test_an_interrupt_ends_the_tool_and_its_daemon(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    # A test run in the background may ignore SIGINT, and children inherit that.
    runner = (
        "import signal, sys\n"
        "from costprof.profiler.process import run_tool\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "run_tool([sys.executable, '-c', sys.argv[1], sys.argv[2]], timeout_s=60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", runner, _script("time.sleep(60)"), str(pid_file)],
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 20
    while not (pid_file.exists() and pid_file.read_text(encoding="ascii")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(2)
    _, errors = process.communicate(timeout=20)
    assert b"KeyboardInterrupt" in errors
    assert not _runs(int(pid_file.read_text(encoding="ascii")))


def test_a_later_process_can_end_a_run_by_its_mark() -> None:
    environment = {**os.environ, MARK_VARIABLE: "test-mark-7f3a"}
    code = "import time; print('up', flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
        assert end_marked_processes("test-mark-7f3a") == 1
    assert process.wait(5) == -9
    assert end_marked_processes("test-mark-7f3a") == 0


def test_a_tool_that_gets_on_may_take_longer_than_its_time(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    code = (
        "import sys, time\n"
        "for _ in range(6):\n"
        "    open(sys.argv[1], 'a').write('x')\n"
        "    time.sleep(0.5)\n"
        "time.sleep(float(sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", code, str(notes)]
    patient = run_tool([*command, "0"], timeout_s=2.0, progress=notes)
    assert patient.succeeded
    assert patient.wall_s > 2.5
    stuck = run_tool([*command, "60"], timeout_s=2.0, progress=notes)
    assert stuck.timed_out
    assert stuck.wall_s < 30
