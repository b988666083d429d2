"""A table's scale, corrected by a few observations."""

from __future__ import annotations

import numpy as np
import pytest

from costprof.core.errors import InputError
from costprof.costmodel.calibration import Scale, fit_scale

QUANTILES = (np.array([90.0, 90.0]), np.array([100.0, 100.0]), np.array([120.0, 120.0]))


def observed(factor: float, size: int, *, noise: float = 0.03, seed: int = 0) -> list[float]:
    rng = np.random.default_rng(seed)
    return (100.0 * factor * np.exp(noise * rng.standard_normal(size))).tolist()


def test_many_observations_find_the_factor() -> None:
    found = fit_scale([100.0] * 200, observed(1.3, 200))
    assert np.exp(found.log_factor) == pytest.approx(1.3, rel=0.01)
    assert found.std < 0.01


def test_one_observation_is_believed_in_part() -> None:
    one = fit_scale([100.0], [130.0])
    three = fit_scale([100.0] * 3, [130.0] * 3)
    assert 0.0 < one.log_factor < three.log_factor < np.log(1.3)
    assert three.std < one.std < Scale().std


def test_none_changes_nothing() -> None:
    found = fit_scale([], [])
    assert found == Scale()
    for before, after in zip(QUANTILES, found.correct(QUANTILES, ["a", "b"]), strict=True):
        assert before.tolist() == after.tolist()


def test_one_in_three_may_be_wrong() -> None:
    values = observed(1.1, 21)
    values[:7] = [900.0] * 7
    # The median of what is left of the right ones moves up by their spread, not by the wrong.
    assert np.exp(fit_scale([100.0] * 21, values).log_factor) == pytest.approx(1.1, rel=0.04)


def test_classes_are_corrected_apart_as_far_as_they_are_known() -> None:
    labels = ["often"] * 30 + ["seldom"] + ["other"] * 30
    values = [*observed(1.2, 30), 80.0, *observed(1.0, 30, seed=1)]
    found = fit_scale([100.0] * 61, values, labels)
    often, seldom, other = (np.exp(found.own[name][0]) for name in ("often", "seldom", "other"))
    assert often == pytest.approx(1.2, rel=0.02)
    assert other == pytest.approx(1.0, abs=0.02)
    assert 0.8 < seldom < np.exp(found.log_factor)
    assert found.own["seldom"][1] > found.own["often"][1]


def test_what_was_not_observed_moves_with_all_and_is_more_doubtful() -> None:
    found = fit_scale([100.0] * 40, observed(1.2, 40), ["a"] * 40)
    low, middle, high = found.correct(QUANTILES, ["a", "new"])
    assert middle == pytest.approx([120.0, 120.0], rel=0.03)
    width = np.log(high / low)
    assert width[0] == pytest.approx(np.log(120.0 / 90.0), rel=0.05)
    assert width[1] > width[0]


def test_intervals_of_a_corrected_table_still_hold() -> None:
    rng = np.random.default_rng(3)
    inside = []
    for _ in range(200):
        factor, spread = np.exp(0.15 * rng.standard_normal()), 0.06
        truth = 100.0 * factor * np.exp(spread * rng.standard_normal(45))
        found = fit_scale([100.0] * 5, truth[:5])
        half = np.exp(1.645 * spread)
        one = tuple(np.full(40, value) for value in (100.0 / half, 100.0, 100.0 * half))
        low, _, high = found.correct((one[0], one[1], one[2]), [""] * 40)
        inside.append(((low <= truth[5:]) & (truth[5:] <= high)).mean())
    assert 0.85 < float(np.mean(inside)) < 0.95


def test_another_power_limit_counts_less() -> None:
    values = [*observed(1.0, 10), *observed(1.2, 10)]
    limits = [700.0] * 10 + [350.0] * 10
    plain = fit_scale([100.0] * 20, values).log_factor
    told = fit_scale([100.0] * 20, values, power_limit_w=limits, table_limit_w=700.0).log_factor
    assert abs(told) < 0.3 * plain
    unknown = fit_scale([100.0] * 20, values, power_limit_w=np.nan, table_limit_w=700.0)
    assert unknown.log_factor == plain


def test_a_hot_device_counts_less() -> None:
    values = [*observed(1.0, 10), *observed(1.2, 10)]
    temperature = [60.0] * 10 + [95.0] * 10
    told = fit_scale([100.0] * 20, values, temperature_c=temperature).log_factor
    assert abs(told) < 0.3 * fit_scale([100.0] * 20, values).log_factor


def test_it_survives_json() -> None:
    found = fit_scale([100.0] * 4, [110.0, 120.0, 90.0, 100.0], ["a", "a", "b", "b"])
    assert Scale.of_dict(found.to_dict()) == found


@pytest.mark.parametrize(
    ("predicted", "read", "labels"),
    [([1.0, 2.0], [1.0], None), ([0.0], [1.0], None), ([1.0], [np.nan], None), ([1.0], [1.0], [])],
)
def test_what_does_not_belong_together_is_refused(
    predicted: list[float], read: list[float], labels: list[str] | None
) -> None:
    with pytest.raises(InputError, match="the table was not corrected"):
        fit_scale(predicted, read, labels)
