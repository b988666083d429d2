"""The greedy choice: the variances of a Gaussian process, and the most telling candidate first."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from costprof.costmodel.doubt import Doubt, most_telling

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


def covariance(n: int, seed: int, length: float = 0.15) -> Array:
    x = np.random.default_rng(seed).random((n, 1))
    return np.asarray(0.1 * np.exp(-np.abs(x - x.T) / length))


def doubt_of(total: Array, noise: Array, weight: float = 1.0, worth: Array | float = 1.0) -> Doubt:
    return Doubt(lambda at: total[:, at], np.diag(total), noise, weight=weight, worth=worth)


def exact_error(total: Array, noise: Array, measured: list[int]) -> float:
    """Summed E|error| by the textbook's formula (Rasmussen and Williams, 2006, eq. 2.26)."""
    left = np.diag(total).copy()
    if measured:
        across = total[:, measured]
        known = total[np.ix_(measured, measured)] + np.diag(noise[measured])
        left -= np.einsum("ij,ji->i", across, np.linalg.solve(known, across.T))
    return float(np.sqrt(2 / np.pi * (left + noise)).sum())


def test_the_variance_is_that_of_the_process() -> None:
    total, noise = covariance(40, 0), np.full(40, 1e-3)
    doubt = doubt_of(total, noise)
    measured: list[int] = []
    for position in np.random.default_rng(1).permutation(40)[:25].tolist():
        gain = float(doubt.gains(np.array([position]))[0])
        before = exact_error(total, noise, measured)
        doubt.measure(position)
        measured.append(position)
        after = exact_error(total, noise, measured)
        assert np.isclose(doubt.expected_errors().sum(), after)
        assert np.isclose(gain, before - after)


def test_each_choice_is_the_best_there_is() -> None:
    totals, noise = [covariance(30, seed, length) for seed, length in ((0, 0.1), (1, 0.4))], 1e-3
    doubts = [doubt_of(total, np.full(30, noise)) for total in totals]
    chosen = most_telling(doubts, 12)
    measured: list[list[int]] = [[], []]
    errors = [exact_error(total, np.full(30, noise), []) for total in totals]
    for which, position in chosen:
        gains = {
            (w, p): errors[w] - exact_error(totals[w], np.full(30, noise), [*measured[w], p])
            for w in (0, 1)
            for p in range(30)
            if p not in measured[w]
        }
        # A stale gain may be below the true one, by little: covariances are not submodular.
        assert gains[which, position] >= 0.98 * max(gains.values())
        measured[which].append(position)
        errors[which] -= gains[which, position]


def test_weight_and_worth_steer_the_choice() -> None:
    total, noise = covariance(30, 0), np.full(30, 1e-3)
    heavy = most_telling([doubt_of(total, noise), doubt_of(total, noise, weight=3.0)], 10)
    assert sum(which for which, _ in heavy) > 5
    worth = np.where(np.arange(30) < 15, 1.0, 1e-3)
    cheap = most_telling([doubt_of(total, noise, worth=worth)], 10)
    assert all(position < 15 for _, position in cheap)


def test_what_cannot_be_measured_is_not_chosen_and_tells_nothing() -> None:
    total, noise = covariance(5, 0), np.full(5, 1e-3)
    doubt = doubt_of(total, noise)
    doubt.rule_out(2)
    assert np.isclose(doubt.expected_errors().sum(), exact_error(total, noise, []))
    assert sorted(position for _, position in most_telling([doubt], 9)) == [0, 1, 3, 4]
