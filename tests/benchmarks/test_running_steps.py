"""What a step leaves where it is refused, fails or is done, and what a later run makes of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import gpu_day
import pytest
import torch
from gpu_steps.children import costprof
from gpu_steps.measures import gpu_tests
from gpu_steps.running import INTERRUPTED, Refused, Step, run_steps, show

from costprof.core.errors import ToolError


def step(
    folder: Path, name: str, run: Callable[[Path], object] | None = None, skip: str | None = None
) -> Step:
    """Return a step that writes its result, unless `run` does otherwise."""
    result = folder / f"{name}.json"
    act = run or (lambda path: path.write_text("{}"))
    return Step(name=name, result=result, expected_s=10, run=lambda: act(result), skip=skip)


def refuse(_: Path) -> None:
    raise Refused("every trial was\nrejected")


def lack(_: Path) -> None:
    raise ToolError("ncu is missing", "nothing was counted", "install it")


def crash(_: Path) -> None:
    raise ZeroDivisionError("a bug")


def test_what_fails_stops_nothing_is_named_and_is_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {"refuses": refuse, "lacks": lack, "crashes": crash, "idles": lambda _: None}
    steps = [*(step(tmp_path, name, run) for name, run in bad.items()), step(tmp_path, "good")]
    assert run_steps(steps) == 1
    reasons = {
        "refuses": "every trial was rejected",
        "lacks": "ncu is missing; nothing was counted; install it",
        "crashes": "ZeroDivisionError: a bug",
        "idles": "it ended without a result",
    }
    end = capsys.readouterr().err.splitlines()[-4:]
    assert end == [f"{name}: refused: {reason}" for name, reason in reasons.items()]
    assert [each.done for each in steps] == [False, False, False, False, True]
    record = json.loads((tmp_path / "refuses.json.refused.json").read_text())
    assert (record["step"], record["refused"]) == ("refuses", reasons["refuses"])

    show(steps)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == (
        "refuses: refused before: every trial was rejected; tried again, not run, about 10 s"
    )
    assert shown[-1] == "good: done before"

    def never(_: Path) -> None:
        raise AssertionError("it was done before")

    again = [*(step(tmp_path, name) for name in bad), step(tmp_path, "good", never)]
    assert run_steps(again) == 0
    assert all(each.done for each in again)
    assert list(tmp_path.glob("*.refused.json")) == []


def test_a_skipped_step_is_named_and_no_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_steps([step(tmp_path, "vLLM", crash, skip="vLLM is not installed")]) == 0
    assert capsys.readouterr().out == "vLLM: skipped: vLLM is not installed\n"


def test_no_step_begins_that_would_not_end_in_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 0.0, 12.0, 19.0])
    steps = [step(tmp_path, name) for name in ("a", "b", "c")]
    assert run_steps(steps, seconds=25, now=lambda: next(clock)) == 1
    assert [each.done for each in steps] == [True, True, False]
    assert "1 steps wait for the next run" in capsys.readouterr().out
    assert not steps[2].refusal.exists(), "what only waits was not refused"


def test_an_interruption_ends_the_day_and_the_next_one_goes_on(tmp_path: Path) -> None:
    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    first = step(tmp_path, "a")
    assert run_steps([first, step(tmp_path, "b", interrupt), step(tmp_path, "c")]) == INTERRUPTED
    assert first.done
    assert not (tmp_path / "c.json").exists()
    assert run_steps([first, step(tmp_path, "b"), step(tmp_path, "c")]) == 0


def test_the_reason_of_a_child_is_its_last_words() -> None:
    with pytest.raises(Refused, match=r"preset 'nowhere' is unknown; nothing was planned"):
        costprof("sweep", "--preset", "nowhere", "--out", "unused")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("pytest.skip('no GPU')", "1 skipped"),
        ("assert False", "1 failed"),
        ("pass", None),
    ],
)
def test_gpu_tests_are_done_where_some_ran_and_all_passed(
    tmp_path: Path, body: str, reason: str | None
) -> None:
    suite = tmp_path / "suite"
    suite.mkdir()
    (suite / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu\n")
    (suite / "test_it.py").write_text(
        f"import pytest\n\n@pytest.mark.gpu\ndef test_it():\n    {body}\n"
    )
    result = tmp_path / "tests.txt"
    if reason is None:
        gpu_tests(result, suite)
        assert "1 passed" in result.read_text()
        return
    with pytest.raises(Refused, match=reason):
        gpu_tests(result, suite)
    assert not result.exists()
    assert reason in (tmp_path / "tests-failed.txt").read_text()


Day = Callable[..., tuple[int, str, str]]


@pytest.fixture
def day(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Day:
    """Return a function that runs the day with some options: exit code, standard output, errors."""

    def run(*options: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gpu_day.py", *options])
        return gpu_day.main(), *capsys.readouterr()

    return run


def test_a_rehearsed_step_is_done_once(tmp_path: Path, day: Day) -> None:
    options = ("--device", "cpu", "--out", str(tmp_path), "--only", "ceilings")
    assert day(*options)[0] == 0
    found = json.loads((tmp_path / "ceilings.json").read_text())
    assert found["copy_bytes_per_s"]["median"] > 0
    assert found["device"]["kind"] == "cpu"
    assert day(*options) == (0, "ceilings: done before\n", "")


def test_a_step_that_lacks_what_it_needs_is_named(tmp_path: Path, day: Day) -> None:
    code, _, errors = day(
        *("--device", "cpu", "--out", str(tmp_path), "--only", "ceilings of cpu-smoke")
    )
    assert (code, errors.splitlines()[-1]) == (
        1,
        "ceilings of cpu-smoke: refused: the ceilings are not measured",
    )


def test_a_step_nobody_knows_is_refused(tmp_path: Path, day: Day) -> None:
    found = day("--device", "cpu", "--out", str(tmp_path), "--only", "lunch")
    assert found == (2, "", "no step is called 'lunch'; see --dry-run\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without a GPU")
def test_without_a_gpu_the_steps_are_shown_and_not_run(tmp_path: Path, day: Day) -> None:
    found = day("--out", str(tmp_path), "--dry-run", "--only", "counters")
    assert found == (0, "counters: not run, about 200 s\n", "")
    assert day("--out", str(tmp_path))[0] == 3
