"""Which scenarios of a sweep are measured: ends and middle, then doubt and lots, then enough."""

from __future__ import annotations

import numpy as np
import pytest

from costprof.core.expert import ExpertClass, Kernel
from costprof.core.work import op_work
from costprof.costmodel.sweep_choice import (
    At,
    Reading,
    SweepChoice,
    SweepCurve,
    choose_scenarios,
)
from costprof.costmodel.sweep_process import CurveProcess, Readings

TOKENS = np.array([1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128], dtype=float)
NOISE = 0.005


def curve(d_ff: int) -> SweepCurve:
    expert = ExpertClass(d_model=256, d_ff=d_ff, dtype="float32")
    work = [op_work(expert, "expert", int(count)) for count in TOKENS]
    return SweepCurve(
        expert=expert,
        op="expert",
        kernel=Kernel(name="kernels:expert", framework="torch"),
        cache_state="cold",
        x=np.log2(TOKENS)[:, None],
        flops=np.array([each.flops for each in work]),
        bytes=np.array([each.bytes for each in work]),
    )


CURVES = [curve(256), curve(1024)]


def truth(which: int) -> np.ndarray:
    """A bound with a step of a quarter in the second curve, where a kernel changes its blocks."""
    at = CURVES[which]
    bound_us = 5.0 + np.maximum(at.flops / 5e4, at.bytes / 1e4)
    bend = 0.25 / (1.0 + np.exp(-4.0 * (at.x[:, 0] - 4.5))) if which else 0.02 * at.x[:, 0]
    return np.asarray(bound_us * np.exp(bend))


def measure(at: At) -> Reading:
    luck = np.random.default_rng([at[0], at[1]]).normal() * NOISE
    return Reading(float(truth(at[0])[at[1]] * np.exp(luck)), NOISE**2)


def run(
    budget: int, target: float | None = None, failing: frozenset[At] = frozenset()
) -> tuple[dict[At, Reading], list[SweepChoice]]:
    measured: dict[At, Reading] = {}
    choices = []
    while True:
        choice = choose_scenarios(CURVES, measured, budget=budget, batch=4, target=target)
        choices.append(choice)
        if choice.stopped:
            assert not choice.next
            return measured, choices
        assert choice.next
        for at in choice.next:
            assert at not in measured  # nothing is asked for twice, not even what failed
            measured[at] = Reading(None) if at in failing else measure(at)


def test_each_curve_begins_with_its_ends_and_middle() -> None:
    first = choose_scenarios(CURVES, {}, budget=34, batch=4).next
    for which in range(len(CURVES)):
        assert sorted(TOKENS[at] for c, at in first if c == which) == [1.0, 12.0, 128.0]
    scarce = choose_scenarios(CURVES, {}, budget=2, batch=4).next
    assert sorted(which for which, _ in scarce) == [0, 1]


def test_a_third_predicts_the_rest_better_than_a_third_at_random() -> None:
    measured, choices = run(12)
    assert len(measured) == 12
    assert choices[-1].stopped == "budget used"

    def error(known: list[At]) -> float:
        """Mean error elsewhere of a straight line in log-log between what is known."""
        off = []
        for which in range(len(CURVES)):
            at = sorted(position for c, position in known if c == which)
            if not at:
                return 1.0
            log2, value = CURVES[which].x[:, 0], np.log(truth(which))
            rest = np.setdiff1d(np.arange(len(log2)), at)
            off += np.abs(np.interp(log2[rest], log2[at], value[at]) - value[rest]).tolist()
        return float(np.mean(off))

    every = [(c, p) for c in range(len(CURVES)) for p in range(len(TOKENS))]
    drawn = [
        error([every[i] for i in np.random.default_rng(seed).permutation(len(every))[:12]])
        for seed in range(20)
    ]
    assert error(list(measured)) < 0.6 * np.median(drawn)


def test_it_stops_when_lots_confirm_the_expected_error() -> None:
    measured, choices = run(34, target=0.02)
    last = choices[-1]
    assert last.stopped == "target error reached"
    assert len(measured) < 30
    assert last.checks >= 5
    assert last.expected_error is not None
    assert last.check_error is not None
    assert max(last.expected_error, last.check_error) <= 0.02
    for earlier in choices[:-1]:
        assert (
            earlier.expected_error is None
            or earlier.checks < 5
            or (max(earlier.expected_error, earlier.check_error or 1.0) > 0.02)
        )


def test_an_error_below_the_noise_is_never_reached() -> None:
    measured, choices = run(34, target=0.0001)
    assert len(measured) == 34
    assert choices[-1].stopped == "all measured"


def test_what_failed_counts_and_is_not_tried_again() -> None:
    failing = frozenset({(0, 16), (1, 0), (1, 9)})
    measured, choices = run(16, failing=failing)
    assert len(measured) == 16
    assert {(0, 16), (1, 0)} <= set(measured)
    whole = frozenset((1, position) for position in range(len(TOKENS)))
    measured, choices = run(34, failing=whole)
    assert choices[-1].stopped == "all measured"


def test_the_same_measurements_lead_to_the_same_choice() -> None:
    first, _ = run(20)
    second, _ = run(20)
    assert list(first) == list(second)


def test_a_left_out_reading_is_predicted_from_the_others() -> None:
    rng = np.random.default_rng(0)
    x = np.sort(rng.random(8))[:, None] * 7
    readings = Readings(x, np.sin(x[:, 0]) * 0.2 + 0.01 * rng.normal(size=8), np.full(8, 1e-4))
    process = CurveProcess.fit([readings])
    error, std = process.left_out(readings)
    for out in range(8):
        rest = np.arange(8) != out
        known = process.covariance(x[rest], x[rest]) + np.diag(readings.noise[rest] + process.luck)
        across = process.covariance(x[[out]], x[rest])[0]
        mean = across @ np.linalg.solve(known, readings.y[rest])
        variance = process.variance() + process.luck + readings.noise[out]
        variance -= across @ np.linalg.solve(known, across)
        assert error[out] == pytest.approx(readings.y[out] - mean, abs=1e-6)
        assert std[out] == pytest.approx(variance**0.5, rel=1e-6)


def test_smoother_curves_are_found_to_be_smoother() -> None:
    x = np.linspace(0, 7, 12)[:, None]
    noise = np.full(12, 1e-6)
    smooth = [Readings(x, 0.2 * np.sin(x[:, 0] / 3 + phase), noise) for phase in range(3)]
    rough = [Readings(x, 0.2 * np.sin(3 * x[:, 0] + phase), noise) for phase in range(3)]
    assert CurveProcess.fit(smooth).length[0] > 2 * CurveProcess.fit(rough).length[0]
