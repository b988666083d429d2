"""The procedure against a GPU whose true joules are known, and what naive reading makes of it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pynvml
import pytest
from simulated_nvml import Recorded, SimulatedGpu, SimulatedNvml, Throttling, VirtualClock, record

from costprof.profiler.energy.result import energy_result
from costprof.profiler.energy.windows import read_trial

CALL_US = 50.0
TICKS_S = (0.02, 0.05, 0.1)


def truth_mj(recorded: Recorded) -> float:
    """True energy of one call over the whole load, heating up included."""
    start_s, end_s = recorded.progress.time_s[0], recorded.progress.time_s[-1]
    gpu = recorded.gpu
    calls = gpu.calls_at(end_s) - gpu.calls_at(start_s)
    return gpu.energy_mj(start_s, end_s) / calls


@pytest.mark.parametrize("tick_s", TICKS_S)
@pytest.mark.parametrize("seed", range(4))
def test_the_procedure_recovers_the_true_joules_of_a_50_us_kernel(tick_s: float, seed: int) -> None:
    recorded = record(tick_s=tick_s, seed=seed, call_us=CALL_US)
    found = read_trial(*recorded.arguments())
    assert (found["status"], found["source"]) == ("accepted", "nvml_counter"), found
    assert found["energy_mj"] == pytest.approx(truth_mj(recorded), rel=0.02)
    # The kernel draws 230 W above idle for 50 µs, and heats the chip by degrees that leak.
    assert found["energy_active_mj"] == pytest.approx(230.0 * CALL_US * 1e-3, rel=0.04)
    true_active_mj = truth_mj(recorded) - recorded.gpu.idle_w * CALL_US * 1e-3
    assert found["energy_active_mj"] == pytest.approx(true_active_mj, rel=0.02)
    assert found["call_us"] == pytest.approx(CALL_US, rel=1e-3)
    assert found["window_s"] > 4.9
    assert abs(found["disagreement"]) < 0.03
    assert found["idle_w_before"] == pytest.approx(70.0, rel=0.01)
    assert found["idle_drift"] > 0, "the hot chip leaks after the load"
    assert found["temp_after_c"] > found["temp_before_c"]
    assert found["throttle_reasons"] == "none"
    assert found["power_peak_w"] >= found["power_mean_w"]


def test_strong_drift_is_charged_to_the_load_and_still_within_two_percent() -> None:
    recorded = record(leakage_w_per_c=1.0, time_constant_s=4.0, seed=9)
    found = read_trial(*recorded.arguments())
    assert found["status"] == "accepted"
    assert found["energy_mj"] == pytest.approx(truth_mj(recorded), rel=0.02)
    assert found["idle_drift"] > 0.1


def test_trials_in_a_row_agree_and_their_interval_holds_the_truth() -> None:
    trials = [record(seed=seed, wobble=0.0) for seed in range(5)]
    rows = [read_trial(*recorded.arguments()) for recorded in trials]
    result = energy_result(rows)
    assert result is not None
    assert result.trials == 5
    assert result.cv < 0.02
    true_mj = truth_mj(trials[0]) - 70.0 * CALL_US * 1e-3
    assert result.active_mj == pytest.approx(true_mj, rel=0.02)
    assert result.low_mj < result.active_mj < result.high_mj


def test_a_naive_single_window_is_off_by_more_than_a_fifth() -> None:
    """One burst, one window: what the counter, and power times time, say about it."""
    calls = 100  # 5 ms
    by_counter, by_power = [], []
    for tick_s, seed in itertools.product(TICKS_S, range(25)):
        start_s = 2.0 + 0.01 * seed
        end_s = start_s + calls * CALL_US * 1e-6
        gpu = SimulatedGpu(loads=((start_s, end_s),), duration_s=4.0, tick_s=tick_s, seed=seed)
        true_mj = gpu.energy_mj(start_s, end_s) / calls
        clock = VirtualClock()
        nvml = SimulatedNvml(gpu, clock)
        clock.now_s = start_s
        before_mj = nvml.nvmlDeviceGetTotalEnergyConsumption(0)
        clock.now_s = end_s
        counted_mj = nvml.nvmlDeviceGetTotalEnergyConsumption(0) - before_mj
        clock.now_s = end_s
        watts = nvml.nvmlDeviceGetPowerUsage(0) / 1e3
        by_counter.append(abs(counted_mj / calls / true_mj - 1))
        by_power.append(abs(watts * CALL_US * 1e-3 / true_mj - 1))
    assert min(by_power) > 0.20
    # The counter mostly does not move at all; now and then a tick hits the burst and is right by
    # luck.
    assert np.median(by_counter) > 0.20
    assert np.mean(np.array(by_counter) > 0.20) > 0.90


def test_power_times_time_of_a_third_of_a_second_carries_over_what_was_before() -> None:
    start_s, end_s = 3.0, 3.3
    gpu = SimulatedGpu(loads=((start_s, end_s),), duration_s=5.0)
    clock = VirtualClock()
    clock.now_s = end_s
    watts = SimulatedNvml(gpu, clock).nvmlDeviceGetPowerUsage(0) / 1e3
    true_w = gpu.energy_mj(start_s, end_s) / (end_s - start_s) / 1e3
    assert watts < 0.8 * true_w


def test_without_a_counter_the_integral_is_used_and_said() -> None:
    recorded = record(
        broken={"nvmlDeviceGetTotalEnergyConsumption": pynvml.NVMLError_NotSupported()}
    )
    found = read_trial(*recorded.arguments())
    assert (found["status"], found["source"]) == ("accepted", "nvml_integral")
    assert found["counter_mj"] is None
    assert "not cross-checked" in found["note"]
    assert found["energy_mj"] == pytest.approx(truth_mj(recorded), rel=0.02)


def test_without_instantaneous_power_the_average_cross_checks() -> None:
    recorded = record(broken={"NVML_FI_DEV_POWER_INSTANT": pynvml.NVMLError_NotSupported()})
    found = read_trial(*recorded.arguments())
    assert found["status"] == "accepted"
    assert found["power_peak_w"] is None, "an average has no peak"
    assert found["energy_mj"] == pytest.approx(truth_mj(recorded), rel=0.02)
    assert abs(found["disagreement"]) < 0.03


def rejection(recorded: Recorded) -> str:
    found = read_trial(*recorded.arguments())
    assert found["status"] == "rejected", found
    return str(found["reason"])


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({"reset_at_s": 8.0}, "the energy counter went down from"),
        ({"sensor_gain": 1.06}, "counter and power integral disagree by +"),
        ({"sensor_gain": 0.94}, "counter and power integral disagree by -"),
        ({"tick_s": 1.5}, "times in the window, fewer than 10"),
        (
            {"throttling": Throttling(start_s=8.0, end_s=9.0, bits=0x40)},
            "the device was slowed down (hw_thermal_slowdown)",
        ),
        (
            {"throttling": Throttling(start_s=8.0, end_s=9.0, bits=0x80)},
            "slowed down (hw_power_brake)",
        ),
        (
            {"throttling": Throttling(start_s=8.0, end_s=9.0, bits=0x02)},
            "the SM clock moved between 1200 and 1755 MHz",
        ),
        ({"kernel_w": -5.0}, "no more than idle"),
    ],
    ids=["reset", "high", "low", "ticks", "thermal", "brake", "clock", "idle"],
)
def test_what_cannot_be_believed_is_rejected_and_explained(
    properties: dict[str, Any], words: str
) -> None:
    assert words in rejection(record(**properties))


def test_a_power_cap_is_flagged_and_kept() -> None:
    recorded = record(throttling=Throttling(start_s=3.0, end_s=13.0, bits=0x04))
    found = read_trial(*recorded.arguments())
    assert found["status"] == "accepted"
    assert found["throttle_reasons"] == "sw_power_cap"
    assert "at the power limit" in found["note"]
    # The slower calls are counted by the marks, so their energy is right.
    assert found["energy_mj"] == pytest.approx(truth_mj(recorded), rel=0.02)
    assert found["call_us"] == pytest.approx(CALL_US / 0.7, rel=0.01)


def test_a_silent_sampler_is_noticed() -> None:
    recorded = record()
    assert "no readings for 1.0" in rejection(recorded.without_samples(8.0, 9.0))
    dead = rejection(recorded.without_samples(8.0, 1e9))
    assert "no readings for" in dead
    assert "of the window (allowed: 0.5 s)" in dead


def test_short_loads_and_missing_progress_are_rejected() -> None:
    recorded = record()
    times, calls = recorded.progress.time_s, recorded.progress.calls
    short = type(recorded.progress)(times[:100], calls[:100])
    found = read_trial(recorded.trace, short, recorded.idle_before, recorded.idle_after)
    assert found["reason"].endswith("s of the load can be used, fewer than 2 s")
    nothing = type(recorded.progress)(np.array([]), np.array([]))
    found = read_trial(recorded.trace, nothing, recorded.idle_before, recorded.idle_after)
    assert found["reason"] == "the workload left no progress marks"
    ends = type(recorded.progress)(times[[0, -1]], calls[[0, -1]])
    found = read_trial(recorded.trace, ends, recorded.idle_before, recorded.idle_after)
    assert "0 progress marks in the window, fewer than 5" in found["reason"]


def test_idle_after_stands_in_for_idle_before() -> None:
    recorded = record()
    found = read_trial(recorded.trace, recorded.progress, None, recorded.idle_after)
    assert found["status"] == "accepted"
    assert "idle_w_before" not in found
    assert found["energy_idle_mj"] == pytest.approx(found["idle_w_after"] * 0.05, rel=1e-3)
    found = read_trial(recorded.trace, recorded.progress, None, None)
    assert found["reason"].startswith("idle power is not known (no idle stretch before the load;")
    assert found["energy_mj"] > 0, "what was known is kept"
