"""Layers of two made-up devices that differ in memory bandwidth, with noise."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
from public_layers import CONSTANTS, POWERS, SHAPES

from costprof.core.device import DeviceFingerprint
from costprof.costmodel.devices import DeviceSpec, spec_for
from costprof.costmodel.grouped.model import Measured
from costprof.costmodel.grouped.points import LayerPoints
from costprof.costmodel.grouped.power import layer_power_w
from costprof.costmodel.grouped.stage_time import stage_times
from costprof.costmodel.grouped.work import layer_work

FASTER = 1.5
SHARDS = ((1, 1), (4, 1), (1, 2), (1, 8))  # tp, ep
TOKENS = (1, 4, 16, 64, 128, 256, 1024, 4096)
_MEMORY = ("weight_bytes_per_s", "row_bytes_per_s", "elementwise_bytes_per_s", "reduce_bytes_per_s")

A: DeviceSpec = spec_for(DeviceFingerprint(kind="gpu", name="NVIDIA H200"))
B: DeviceSpec = dataclasses.replace(
    A, name="B", memory_bytes_per_s=FASTER * A.memory_bytes_per_s, power_limit_w=500.0
)


def layers(shapes: tuple[tuple[int, int, int, int], ...] = SHAPES) -> LayerPoints:
    """Return layers of `shapes` under two precisions and two routings."""
    keys = [
        (h, i // tp, k, e, tp, ep, tokens, routing, precision)
        for h, i, k, e in shapes
        for tp, ep in SHARDS
        for tokens in TOKENS
        for routing in ("balanced", "power_law_1.2")
        for precision in ("bfloat16", "fp8")
    ]
    names = (
        *("hidden", "inner", "top_k", "experts", "tp_size", "ep_size"),
        *("tokens", "distribution", "precision"),
    )
    columns = dict(zip(names, zip(*keys, strict=True), strict=True))
    same = {"framework": ["vllm 0.99.0"] * len(keys), "kernel": ["vllm:fused"] * len(keys)}
    return LayerPoints.of_columns({**columns, **same})


def measured_on(
    device: str, points: LayerPoints, *, noise: float = 0.01, seed: int = 0
) -> Measured:
    """Return what `points` take on device `A`, or on `B` of FASTER the memory."""
    rng = np.random.default_rng([seed, device == "B"])
    constants, limit_w = CONSTANTS, A.power_limit_w
    if device == "B":
        more = {name: FASTER * getattr(CONSTANTS, name) for name in _MEMORY}
        constants, limit_w = dataclasses.replace(CONSTANTS, **more), B.power_limit_w
    work = layer_work(points)
    latency_us = stage_times(work, constants).total_us
    # No formula of ours knows what a shape is off by; it is the same on both.
    latency_us = latency_us * (1.0 + 0.08 * np.sin(points.inner * points.tp_size + points.experts))
    power_w = layer_power_w(work, latency_us, POWERS, limit_w)

    def read(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(values * np.exp(noise * rng.standard_normal(len(points))))

    return Measured(points, read(latency_us), read(power_w))
