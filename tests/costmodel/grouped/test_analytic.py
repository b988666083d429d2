"""The analytic parts: work, stage times, power."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from costprof.core.device import DeviceFingerprint
from costprof.costmodel.devices import spec_for
from costprof.costmodel.grouped.fit_stages import fit_stage_constants
from costprof.costmodel.grouped.points import LayerPoints
from costprof.costmodel.grouped.power import (
    PowerConstants,
    fit_power_constants,
    layer_power_w,
)
from costprof.costmodel.grouped.stage_time import StageConstants, stage_times
from costprof.costmodel.grouped.work import layer_work, taken

SPEC = spec_for(DeviceFingerprint(kind="gpu", name="NVIDIA H200"))


def points(**changes: object) -> LayerPoints:
    columns: dict[str, object] = {
        "framework": ["vllm 0.99.0"],
        "kernel": ["vllm:fused"],
        "precision": ["bfloat16"],
        "hidden": [256],
        "inner": [128],
        "top_k": [2],
        "experts": [8],
        "ep_size": [1],
        "tp_size": [1],
        "tokens": [64],
        "distribution": ["balanced"],
        **changes,
    }
    size = max(len(value) for value in columns.values())  # type: ignore[arg-type]
    return LayerPoints.of_columns(
        {name: list(value) * (size // len(value)) for name, value in columns.items()}  # type: ignore[call-overload, arg-type]
    )


def test_work_is_what_one_counts_by_hand() -> None:
    work = layer_work(points())
    # 64 tokens, 2 of 8 experts each: 16 rows an expert, in tiles of 32 rows and 64 columns.
    assert work.copies.tolist() == [128]
    assert work.up.tiles.tolist() == [8 * 4]
    assert work.down.tiles.tolist() == [8 * 4]
    assert work.up.flops.tolist() == [2 * 8 * 32 * 256 * 256]
    assert work.up.weight_bytes.tolist() == [8 * 256 * 256 * 2]
    assert work.down.weight_bytes.tolist() == [8 * 256 * 128 * 2]
    assert work.up.steps.tolist() == [2]
    assert work.useful_flops.tolist() == [6 * 128 * 256 * 128]
    assert work.elementwise_bytes.tolist() == [128 * 3 * 128 * 2]
    assert work.reduce_bytes.tolist() == [(128 + 64) * 256 * 2]
    assert work.zero_bytes.tolist() == [0]


def test_a_rank_reads_the_weights_of_its_own_experts_and_clears_the_rest() -> None:
    work = layer_work(points(ep_size=[1, 4]))
    assert work.weight_bytes[1] * 4 == work.weight_bytes[0]
    assert work.zero_bytes.tolist() == [0, 128 * 256 * 2]
    assert work.elementwise_bytes[0] == work.elementwise_bytes[1]


def test_eight_bits_halve_weights_and_add_quantising() -> None:
    work = layer_work(points(precision=["bfloat16", "fp8"]))
    assert work.weight_bytes[1] * 2 == work.weight_bytes[0]
    assert work.elementwise_bytes[1] > work.elementwise_bytes[0]


def test_stages_add_up_and_faster_constants_never_take_longer() -> None:
    work, constants = layer_work(points(tokens=[1, 64, 4096])), StageConstants.of_spec(SPEC)
    times = stage_times(work, constants)
    parts = sum(getattr(times, field.name) for field in dataclasses.fields(times))
    assert np.allclose(parts, times.total_us)
    for name in ("flops_per_s", "weight_bytes_per_s", "cache_bytes_per_s"):
        faster = dataclasses.replace(constants, **{name: 2 * getattr(constants, name)})
        assert (stage_times(work, faster).total_us <= times.total_us).all()


def test_constants_are_found_again_in_what_they_made() -> None:
    rng = np.random.default_rng(0)
    many = points(
        tokens=rng.integers(1, 8192, 400).tolist(),
        hidden=(64 * rng.integers(8, 100, 400)).tolist(),
        inner=(64 * rng.integers(4, 60, 400)).tolist(),
        ep_size=rng.choice([1, 2, 4], 400).tolist(),
    )
    work, start = layer_work(many), StageConstants.of_spec(SPEC)
    truth = dataclasses.replace(
        start,
        launch_us=30.0,
        weight_bytes_per_s=3e12,
        flops_per_s=4e14,
        elementwise_bytes_per_s=1e12,
    )
    latency_us = stage_times(work, truth).total_us
    half = np.arange(0, 400, 2)
    found = fit_stage_constants(taken(work, half), latency_us[half], start)
    error = np.abs(stage_times(work, found).total_us / latency_us - 1)[1::2]
    assert np.median(error) < 0.01
    assert error.max() < 0.1
    assert found.launch_us == pytest.approx(30.0, rel=0.05)


def test_power_is_capped_and_its_constants_are_found_again() -> None:
    rng = np.random.default_rng(1)
    work = layer_work(points(tokens=rng.integers(1, 8192, 300).tolist()))
    latency_us = 20.0 + rng.random(300) * 500.0
    truth = PowerConstants(120.0, 0.3, 60.0, 8.0)
    power = layer_power_w(work, latency_us, truth, 400.0)
    assert power.max() <= 400.0
    found = fit_power_constants(work, latency_us, power, PowerConstants.of_spec(SPEC), 400.0)
    assert np.abs(layer_power_w(work, latency_us, found, 400.0) / power - 1).max() < 0.05


def test_a_method_nobody_metered_draws_what_others_do() -> None:
    known = [PowerConstants(100.0, 0.5, 20.0, 4.0), PowerConstants(400.0, 0.5, 5.0, 9.0)]
    typical = PowerConstants.typical(known)
    assert dataclasses.astuple(typical) == pytest.approx((200.0, 0.5, 10.0, 6.0))
