"""The process that corrects carried prices, against its textbook form."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
from two_devices import A, B

from costprof.costmodel.grouped.carry import TRAITS, Carried
from costprof.costmodel.grouped.fit_transfer import fit_correction
from costprof.costmodel.grouped.transfer import Correction, TransferScales, fresh
from costprof.costmodel.grouped.transfer_choice import choose_targets

Array = npt.NDArray[np.float64]


def some_layers(size: int, seed: int = 0) -> tuple[Carried, Array, Array]:
    """Return carried layers of two methods, their true correction, and one reading of each."""
    rng = np.random.default_rng(seed)
    traits = rng.uniform(0.0, 4.0, (size, len(TRAITS)))
    method = np.array(["a", "b"])[rng.integers(0, 2, size)]
    correction = np.where(method == "a", 0.05, -0.03) * np.cos(traits[:, 0] / 2.0)
    zeros = np.zeros(size)
    carried = Carried(
        *(np.full(size, 5.0), zeros, np.full(size, np.nan), zeros),
        *(method, np.ones(size), traits, rng.uniform(0.0, 0.1, size), np.ones(size, dtype=bool)),
    )
    return carried, correction, np.exp(5.0 + correction + 0.01 * rng.standard_normal(size))


def unknown(size: int) -> Array:
    return np.full(size, np.nan)


def naive_covariance(a: Carried, b: Carried, s: TransferScales) -> Array:
    """The covariance, one pair at a time."""

    def matern(x: Array, y: Array, lengths: Array) -> float:
        r = 3.0**0.5 * float(np.sqrt((((x - y) / lengths) ** 2).sum()))
        return float((1.0 + r) * np.exp(-r))

    total = np.empty((len(a), len(b)))
    for i, x in enumerate(a.traits):
        for j, y in enumerate(b.traits):
            total[i, j] = s.common_std**2 + s.smooth_std**2 * matern(x, y, s.lengths)
            if a.method[i] == b.method[j]:
                own = s.method_smooth_std**2 * matern(x, y, s.method_lengths)
                total[i, j] += s.method_std**2 + own
    return total


def test_the_correction_is_the_textbooks_process() -> None:
    carried, _, latency_us = some_layers(50)
    given, asked = carried.take(np.arange(30)), carried.take(np.arange(30, 50))
    found = fit_correction(given, latency_us[:30], unknown(30), fresh(A, B))
    mean, variance = found.predict(asked)
    noise = found.scales.noise_std**2 + (found.scales.draw_factor * given.spread) ** 2
    total = naive_covariance(given, given, found.scales) + np.diag(noise)
    cross = naive_covariance(asked, given, found.scales)
    assert mean == pytest.approx(cross @ np.linalg.solve(total, np.log(latency_us[:30]) - 5.0))
    prior = np.diag(naive_covariance(asked, asked, found.scales))
    left = prior - np.einsum("ij,ji->i", cross, np.linalg.solve(total, cross.T))
    own = found.scales.noise_std**2 + (found.scales.draw_factor * asked.spread) ** 2
    assert variance == pytest.approx(left + own)


def test_leaving_one_out_is_as_if_it_had_not_been_measured() -> None:
    carried, _, latency_us = some_layers(25)
    found = fit_correction(carried, latency_us, unknown(25), fresh(A, B))
    mean, variance = found.left_out()
    rest = np.arange(25) != 7
    without = dataclasses.replace(
        found,
        method=found.method[rest],
        strangeness=found.strangeness[rest],
        traits=found.traits[rest],
        residual=found.residual[rest],
        noise=found.noise[rest],
    )
    expected, doubt = without.predict(carried.take(~rest))
    assert (mean[7], variance[7]) == (pytest.approx(expected[0]), pytest.approx(doubt[0]))


def test_a_wild_reading_moves_little() -> None:
    carried, correction, latency_us = some_layers(120)
    wild = latency_us.copy()
    wild[:3] *= 9.0
    found = fit_correction(carried, wild, unknown(120), fresh(A, B))
    mean, _ = found.predict(carried)
    assert np.abs(mean - correction)[3:].mean() < 0.04


def test_intervals_are_calibrated_from_thirty_measurements_on() -> None:
    carried, _, latency_us = some_layers(40)
    at = np.arange(29)
    start = fresh(A, B)
    few = fit_correction(carried.take(at), latency_us[:29], unknown(29), start)
    assert few.factor == start.factor == pytest.approx(1.645, abs=1e-3)
    # Every fifth reading is far off: more than a normal error has it.
    odd = latency_us * np.where(np.arange(40) % 5, 1.0, 1.25)
    more = fit_correction(carried, odd, unknown(40), start)
    mean, variance = more.left_out()
    inside = np.abs(np.log(odd) - 5.0 - mean) <= more.factor * np.sqrt(variance) + 1e-9
    assert more.factor > few.factor
    assert inside.mean() >= 0.9


def test_chosen_layers_are_distinct_and_tell_more_than_any() -> None:
    carried, _, _ = some_layers(400)
    start = fresh(A, B)
    chosen = choose_targets(carried, 30, start.scales)
    assert len(set(chosen.tolist())) == 30
    assert chosen[:10].tolist() == choose_targets(carried, 10, start.scales).tolist()

    def doubt(at: npt.NDArray[np.int64]) -> float:
        some = carried.take(at)
        noise = start.scales.noise_variance(some.spread)
        given = Correction(
            *(start.scales, some.method, some.strangeness, some.traits),
            *(np.zeros(len(at)), noise),
        )
        return float(given.predict(carried)[1].mean())

    drawn = [np.random.default_rng(seed).choice(400, 30, replace=False) for seed in range(10)]
    assert doubt(chosen) < min(doubt(each) for each in drawn)


def test_choosing_more_than_there_are_chooses_all() -> None:
    carried, _, _ = some_layers(12)
    assert sorted(choose_targets(carried, 99, fresh(A, B).scales)) == list(range(12))
