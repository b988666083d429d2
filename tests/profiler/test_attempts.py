from __future__ import annotations

import numpy as np

from costprof.profiler.attempts import Attempts
from costprof.profiler.plan import Run, make_plan
from costprof.profiler.results import Calls, RunOutcome
from costprof.profiler.spec import SweepSpec, TimingSpec


def steady(level_us: float = 100.0, passes: int = 2) -> Calls:
    wall = np.full(10 * passes, level_us)
    nothing = np.full(wall.size, np.nan)
    return Calls(wall, nothing, nothing, np.repeat(np.arange(passes), 10))


def noisy(spread: float = 1.0) -> Calls:
    calls = steady()
    return Calls(
        np.tile(100 * (1 + spread * np.linspace(0, 1, 10)), 2),
        calls.kernel_sum_us,
        calls.kernels,
        calls.pass_index,
    )


def a_run(spec: SweepSpec) -> tuple[Run, list[str]]:
    run = make_plan(spec, "cpu").runs[0]
    return run, [scenario.scenario_id for scenario in run.scenarios]


def test_only_the_noisy_are_measured_again_and_the_best_attempt_is_kept(
    tiny_spec: SweepSpec,
) -> None:
    run, names = a_run(tiny_spec)
    attempts = Attempts(run, TimingSpec(remeasure=2))
    attempts.add(
        attempts.pending(),
        RunOutcome(calls={names[0]: steady(), names[1]: noisy(0.5), names[2]: steady()}),
        "r.0",
    )
    assert [s.scenario_id for s in attempts.pending()] == [names[1]]
    attempts.add(attempts.pending(), RunOutcome(calls={names[1]: noisy(0.9)}), "r.1")
    attempts.add(attempts.pending(), RunOutcome(calls={names[1]: noisy(0.7)}), "r.2")
    assert attempts.pending() == []
    assert attempts.best[names[1]].run_id == "r.0"
    assert "robust CV" in str(attempts.best[names[1]].problem)
    assert attempts.tried == {names[0]: 1, names[1]: 3, names[2]: 1}


def test_an_error_of_the_kernel_is_final(tiny_spec: SweepSpec) -> None:
    run, names = a_run(tiny_spec)
    attempts = Attempts(run, TimingSpec())
    calls = {name: steady() for name in names}
    attempts.add(attempts.pending(), RunOutcome(calls=calls, errors={names[1]: "boom"}), "r.0")
    assert attempts.pending() == []
    assert attempts.best[names[1]].problem == "boom"
    assert attempts.best[names[1]].summary is None


def test_a_crash_costs_the_others_nothing_and_the_suspect_is_tried_once_more_alone(
    tiny_spec: SweepSpec,
) -> None:
    run, names = a_run(tiny_spec)
    attempts = Attempts(run, TimingSpec())
    crash = RunOutcome(
        calls={names[0]: steady(passes=1)}, cut_short=names[1], crash="died of SIGSEGV"
    )
    attempts.add(attempts.pending(), crash, "r.0")
    # One pass is not a measurement: the first scenario comes again with the innocent third.
    assert [s.scenario_id for s in attempts.pending()] == [names[0], names[2]]
    attempts.add(
        attempts.pending(), RunOutcome(calls={names[0]: steady(), names[2]: steady()}), "r.1"
    )
    assert [s.scenario_id for s in attempts.pending()] == [names[1]]
    attempts.add(attempts.pending(), RunOutcome(cut_short=names[1], crash="died of SIGSEGV"), "r.2")
    assert attempts.pending() == []
    assert attempts.best[names[1]].problem == "died of SIGSEGV"


def test_a_suspect_that_then_measures_noisily_does_not_go_on_for_ever(
    tiny_spec: SweepSpec,
) -> None:
    run, names = a_run(tiny_spec)
    attempts = Attempts(run, TimingSpec(remeasure=1))
    attempts.add(attempts.pending(), RunOutcome(cut_short=names[0], crash="died"), "r.0")
    for number in range(1, 10):
        pending = attempts.pending()
        if not pending:
            break
        calls = {s.scenario_id: noisy() for s in pending}
        attempts.add(pending, RunOutcome(calls=calls), f"r.{number}")
    assert attempts.pending() == []
    assert attempts.best[names[0]].summary is not None


def test_unreadable_exports_and_processes_that_never_start_are_retried_a_bounded_number_of_times(
    tiny_spec: SweepSpec,
) -> None:
    for outcome in (RunOutcome(unread="no report"), RunOutcome(crash="never started")):
        run, names = a_run(tiny_spec)
        attempts = Attempts(run, TimingSpec(remeasure=2))
        while attempts.pending():
            attempts.add(attempts.pending(), outcome, f"r.{attempts.processes}")
        assert attempts.processes == 3
        assert {attempts.best[name].problem for name in names} <= {"no report", "never started"}
