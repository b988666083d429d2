"""How a measuring process ended, in words."""

from __future__ import annotations

import pytest

from costprof.profiler.backends.process import note_crash
from costprof.profiler.process import Completed
from costprof.profiler.results import RunOutcome


def ended(returncode: int, stderr: str = "") -> Completed:
    return Completed(("python",), returncode, False, 1.0, "", stderr)


@pytest.mark.parametrize(
    ("returncode", "words"),
    [
        (-9, "the process died of SIGKILL"),
        (139, "the process died of SIGSEGV"),  # under nsys
        (134, "the process died of SIGABRT"),
        (1, "the process failed: MemoryError"),
        (255, "the process failed: MemoryError"),
    ],
)
def test_a_signal_is_named_with_and_without_a_tool_around_the_process(
    returncode: int, words: str
) -> None:
    outcome = RunOutcome(cut_short="a", crash="the process ended before its run was over")
    note_crash(outcome, ended(returncode, "Traceback\nMemoryError\n"), 10.0)
    assert outcome.crash == words


def test_a_tools_own_complaint_after_a_whole_run_is_no_crash() -> None:
    outcome = RunOutcome()
    note_crash(outcome, ended(139), 10.0)
    assert outcome.crash is None
    stopped = RunOutcome(stopped=True)
    note_crash(stopped, ended(-11), 10.0)
    assert stopped.crash is None
