"""Power and time at lower clocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costprof.core.device import DeviceFingerprint
from costprof.costmodel.clocks import capped_call, clocked_call, relative_voltage
from costprof.costmodel.physics import active_power_w, spec_for

SPEC = spec_for(DeviceFingerprint(kind="gpu", name="NVIDIA H200"))
WORK = st.fixed_dictionaries({"flops": st.floats(1e6, 1e14), "bytes": st.floats(1e3, 1e11)})


def test_at_full_clock_it_is_the_power_model_of_the_limit_free_device() -> None:
    work = {"flops": 1e9, "bytes": 1e8}
    call = clocked_call(SPEC, **work, dtype="bfloat16")
    active = active_power_w(SPEC, **work, latency_us=call.latency_us)
    assert call.power_w == pytest.approx(active + SPEC.idle_w)


def test_arithmetic_waits_for_the_clock_and_traffic_does_not() -> None:
    compute = {"flops": 1e12, "bytes": 1e6, "dtype": "bfloat16"}
    traffic = {"flops": 1e6, "bytes": 1e10, "dtype": "bfloat16"}
    slow, full = clocked_call(SPEC, **compute, clock=0.5), clocked_call(SPEC, **compute)
    launch = SPEC.launch_us
    assert slow.latency_us - launch == pytest.approx(2.0 * (full.latency_us - launch))
    assert clocked_call(SPEC, **traffic, clock=0.5).latency_us == pytest.approx(
        clocked_call(SPEC, **traffic).latency_us
    )


def test_voltage_ends_at_its_least_and_full_value() -> None:
    assert relative_voltage(SPEC, 1.0) == 1.0
    assert relative_voltage(SPEC, SPEC.min_clock) == pytest.approx(SPEC.min_voltage)


def test_a_lower_limit_costs_prefill_time_and_decode_none() -> None:
    prefill = {"flops": 4e13, "bytes": 1e9, "dtype": "bfloat16"}
    decode = {"flops": 1e9, "bytes": 1e9, "dtype": "bfloat16"}
    half = 0.5 * SPEC.power_limit_w
    assert capped_call(SPEC, **prefill, limit_w=half).latency_us > 1.1 * (
        capped_call(SPEC, **prefill).latency_us
    )
    assert capped_call(SPEC, **decode, limit_w=half).latency_us == pytest.approx(
        clocked_call(SPEC, **decode).latency_us
    )


@given(work=WORK, limit=st.floats(150.0, 900.0))
def test_the_limit_is_kept_and_no_clock_is_given_away(work: dict[str, float], limit: float) -> None:
    call = capped_call(SPEC, **work, dtype="bfloat16", limit_w=limit)
    assert SPEC.min_clock <= call.clock <= 1.0
    if call.clock > SPEC.min_clock:
        assert call.power_w <= limit
    if SPEC.min_clock < call.clock < 1.0:
        faster = clocked_call(SPEC, **work, dtype="bfloat16", clock=min(1.0, call.clock + 1e-6))
        assert faster.power_w > limit


@given(work=WORK)
def test_a_higher_limit_is_never_slower(work: dict[str, float]) -> None:
    times = [
        capped_call(SPEC, **work, dtype="bfloat16", limit_w=limit).latency_us
        for limit in (200.0, 400.0, 700.0)
    ]
    assert times == sorted(times, reverse=True)
