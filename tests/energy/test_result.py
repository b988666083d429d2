"""CV and confidence interval, by hand and against numpy and scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats

from costprof.profiler.energy.result import MEASURED_COLUMNS, energy_result, mean_interval
from costprof.profiler.energy.throttle import names


def row(active_mj: float, **other: Any) -> dict[str, Any]:
    return {
        "status": "accepted",
        "source": "nvml_counter",
        "energy_active_mj": active_mj,
        "idle_w_before": 60.0,
        "idle_w_after": 66.0,
        "power_mean_w": 300.0,
        "power_peak_w": 320.0,
        "temp_before_c": 40.0,
        "temp_after_c": 50.0,
        "sm_clock_before_mhz": 1700.0,
        "sm_clock_after_mhz": 1700.0,
        "mem_clock_before_mhz": None,
        "mem_clock_after_mhz": None,
        "throttle_reasons": "none",
        **other,
    }


def test_three_trials_by_hand() -> None:
    result = energy_result([row(9.0), row(10.0), row(11.0, power_peak_w=350.0)])
    assert result is not None
    assert result.active_mj == 10.0
    assert result.cv == pytest.approx(0.1)  # s = 1
    # t(0.95, 2 degrees of freedom) = 2.920, times s / sqrt(3)
    assert result.high_mj - 10.0 == pytest.approx(2.920 / 3**0.5, abs=1e-3)
    assert 10.0 - result.low_mj == pytest.approx(result.high_mj - 10.0)
    assert result.power_peak_w == 350.0
    assert result.idle_w == 60.0
    assert result.ends["mem_clock_before_mhz"] is None
    columns = result.columns(latency_us=50.0)
    assert columns["energy_idle_mj"] == pytest.approx(3.0)
    assert columns["energy_mj"] == pytest.approx(13.0)
    assert columns["energy_trusted"] is True
    assert columns["energy_source"] == "nvml_counter"
    assert set(columns) == set(MEASURED_COLUMNS)


def test_against_numpy_and_scipy() -> None:
    values = np.random.default_rng(0).normal(15.0, 0.3, size=6)
    result = energy_result([row(float(value)) for value in values])
    assert result is not None
    assert result.cv == pytest.approx(np.std(values, ddof=1) / np.mean(values))
    expected = scipy.stats.t.interval(
        0.90, len(values) - 1, loc=values.mean(), scale=scipy.stats.sem(values)
    )
    assert (result.low_mj, result.high_mj) == pytest.approx(expected)
    assert mean_interval(values.tolist(), 0.95) == pytest.approx(
        scipy.stats.t.interval(0.95, 5, loc=values.mean(), scale=scipy.stats.sem(values))
    )


def test_ninety_of_a_hundred_intervals_hold_the_truth() -> None:
    chance = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        low, high = mean_interval(chance.normal(10, 1, size=3).tolist())
        held += low <= 10 <= high
    assert 0.86 < held / 400 < 0.94


def test_two_trials_or_mixed_sources_are_not_enough() -> None:
    assert energy_result([row(9.0), row(10.0)]) is None
    rejected = row(9.0, status="rejected")
    assert energy_result([row(9.0), row(10.0), rejected]) is None
    other = row(12.0, source="nvml_integral")
    assert energy_result([row(9.0), row(10.0), other]) is None
    mixed = [row(9.0), other, other, other, row(10.0)]
    result = energy_result(mixed)
    assert result is not None
    assert (result.source, result.trials, result.active_mj) == ("nvml_integral", 3, 12.0)


def test_an_interval_never_reaches_below_zero() -> None:
    result = energy_result([row(0.1), row(5.0), row(12.0)])
    assert result is not None
    assert result.low_mj == 0.0


def test_reasons_of_all_trials_are_named() -> None:
    rows = [row(9.0), row(10.0, throttle_reasons="sw_power_cap"), row(11.0)]
    result = energy_result(rows)
    assert result is not None
    assert result.throttle_reasons == "sw_power_cap"
    assert names(0x001 | 0x100) == "none"
    assert names(0x048) == "hw_slowdown, hw_thermal_slowdown"
