"""Roofline, power and heat: known answers, limits and the shipped constants."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costprof.core.device import DeviceFingerprint
from costprof.costmodel import physics
from costprof.costmodel.physics import (
    active_power_w,
    modelled_energy,
    roofline,
    spec_for,
    thermal_rise_c,
)

H100 = DeviceFingerprint(kind="gpu", name="NVIDIA H100 80GB HBM3")
SPEC = dataclasses.replace(
    spec_for(H100),
    peak_flops={"bfloat16": 1e12},
    memory_bytes_per_s=1e11,
    launch_us=2.0,
    power_limit_w=300.0,
    idle_w=50.0,
    busy_w=40.0,
    pj_per_flop=1.0,
    pj_per_byte=100.0,
    low=0.5,
    high=2.0,
    resistance_c_per_w=0.1,
    time_constant_s=10.0,
)


def test_roofline_takes_the_longer_of_arithmetic_and_traffic() -> None:
    compute = roofline(SPEC, flops=5e6, bytes=1e5, dtype="bfloat16")
    assert compute == pytest.approx((5.0, 1.0, 2.0))
    assert compute.total_us == pytest.approx(7.0)
    assert roofline(SPEC, flops=1e6, bytes=1e6, dtype="bfloat16").total_us == pytest.approx(12.0)


def test_power_adds_its_parts_and_stops_at_the_limit() -> None:
    # 1e6 operations and 1e4 bytes in 10 us: (1 uJ + 1 uJ) / 10 us = 0.2 W.
    assert active_power_w(SPEC, flops=1e6, bytes=1e4, latency_us=10.0) == pytest.approx(40.2)
    assert active_power_w(SPEC, flops=1e12, bytes=0, latency_us=10.0) == 250.0


def test_energy_of_a_known_call() -> None:
    energy = modelled_energy(SPEC, 0.0, 0.0, 1000.0)
    assert energy.active_mj == pytest.approx(40.0)
    assert energy.idle_mj == pytest.approx(50.0)
    assert (energy.low_mj, energy.high_mj) == pytest.approx((20.0, 80.0))
    assert energy.power_mean_w == pytest.approx(90.0)
    assert energy.temp_rise_c == pytest.approx(40.0 * 0.1 * 1e-3 / 10.0, rel=1e-3)


@given(flops=st.floats(0, 1e13), size=st.floats(0, 1e11), latency_us=st.floats(0.1, 1e6))
def test_the_range_holds_the_energy_and_the_limit(
    flops: float, size: float, latency_us: float
) -> None:
    energy = modelled_energy(SPEC, flops, size, latency_us)
    assert 0 < energy.low_mj <= energy.active_mj <= energy.high_mj
    assert energy.power_mean_w <= SPEC.power_limit_w * (1 + 1e-12)


def test_heat_settles_at_power_times_resistance() -> None:
    assert thermal_rise_c(SPEC, 100.0, 1000.0) == pytest.approx(10.0)
    assert thermal_rise_c(SPEC, 100.0, 10.0) == pytest.approx(10.0 * (1 - math.exp(-1)))
    assert thermal_rise_c(SPEC, 0.0, 10.0, start_c=8.0) == pytest.approx(8.0 * math.exp(-1))


@given(first=st.floats(0, 50), second=st.floats(0, 50), start=st.floats(0, 30))
def test_heating_twice_is_heating_once_for_longer(
    first: float, second: float, start: float
) -> None:
    halfway = thermal_rise_c(SPEC, 70.0, first, start)
    assert thermal_rise_c(SPEC, 70.0, second, halfway) == pytest.approx(
        thermal_rise_c(SPEC, 70.0, first + second, start)
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100 SXM4 80GB"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM5 80GB"),
        ("NVIDIA H200", "H200 SXM 141GB"),
        ("NVIDIA B200", "B200 SXM"),
        ("NVIDIA H100 PCIe", "generic GPU"),
        ("NVIDIA GeForce RTX 3080", "generic GPU"),
    ],
)
def test_a_device_finds_its_constants_by_name(name: str, expected: str) -> None:
    assert spec_for(DeviceFingerprint(kind="gpu", name=name)).name == expected


def test_a_cpu_scales_with_the_cores_that_work() -> None:
    cpu = DeviceFingerprint(kind="cpu", name="some CPU", units=8)
    one, all_cores = spec_for(cpu, units=1), spec_for(cpu)
    assert all_cores.idle_w == pytest.approx(8 * one.idle_w)
    assert all_cores.peak_flops["float32"] == pytest.approx(8 * one.peak_flops["float32"])
    # The same power a core heats the package just as much.
    assert thermal_rise_c(all_cores, 8.0, 5.0) == pytest.approx(thermal_rise_c(one, 1.0, 5.0))


def test_the_limit_of_the_device_at_hand_wins() -> None:
    assert spec_for(H100).power_limit_w == 700.0
    assert spec_for(dataclasses.replace(H100, power_limit_w=350.0)).power_limit_w == 350.0


@pytest.mark.parametrize("name", ["A100-SXM4-80GB", "H100 80GB HBM3", "H200", "B200"])
def test_shipped_constants_agree_with_what_they_claim(name: str) -> None:
    spec = spec_for(DeviceFingerprint(kind="gpu", name=f"NVIDIA {name}"))
    full = spec.peak_flops["bfloat16"], spec.memory_bytes_per_s
    arithmetic = active_power_w(spec, flops=full[0], bytes=0, latency_us=1e6)
    traffic = active_power_w(spec, flops=0, bytes=full[1], latency_us=1e6)
    assert arithmetic + spec.idle_w == pytest.approx(spec.power_limit_w, rel=0.25)
    assert 0.35 < (traffic + spec.idle_w) / spec.power_limit_w < 0.7
    assert 25 < thermal_rise_c(spec, spec.power_limit_w - spec.idle_w, 1e4) < 45


def test_every_device_file_is_described() -> None:
    folder = Path(physics.__file__).parents[1] / "data" / "devices"
    names = {file.stem for file in folder.glob("*.toml")}
    assert names == {"a100", "h100", "h200", "b200", "generic-cpu", "generic-gpu"}
