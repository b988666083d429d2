"""Time, power and heat of a call from its arithmetic, for devices whose constants are known.

Pure functions of floats; numpy arrays work wherever no constant is chosen by comparison. Units
stand in the names; formulas are the textbook ones cited at each function.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from costprof.costmodel.devices import DeviceSpec, spec_for

__all__ = [
    "DeviceSpec",
    "ModelledEnergy",
    "RooflineTime",
    "active_power_w",
    "modelled_energy",
    "roofline",
    "spec_for",
    "thermal_rise_c",
]

_US_PER_S = 1e6
_MJ_PER_W_US = 1e-3
_J_PER_PJ = 1e-12


class RooflineTime(NamedTuple):
    """Lower bounds of a call's time: arithmetic, memory traffic, and launching it at all."""

    compute_us: float
    memory_us: float
    launch_us: float

    @property
    def total_us(self) -> float:
        """Arithmetic and traffic overlap, the launch does not: launch + max(compute, memory)."""
        return self.launch_us + max(self.compute_us, self.memory_us)


class ModelledEnergy(NamedTuple):
    """Energy of one call; `low_mj … high_mj` is the range of `active_mj`.

    `active_mj` is what the call adds to `idle_mj`, which the device draws in that time anyway.
    """

    active_mj: float
    idle_mj: float
    low_mj: float
    high_mj: float
    power_mean_w: float
    temp_rise_c: float


def roofline(spec: DeviceSpec, *, flops: float, bytes: float, dtype: str) -> RooflineTime:
    """Return the roofline time of a call (Williams et al., CACM 52(4), 2009).

        compute_us = flops / peak_flops[dtype] · 10⁶
        memory_us  = bytes / memory_bytes_per_s · 10⁶

    Raises:
        KeyError: the spec has no ceiling for `dtype`.
    """
    return RooflineTime(
        flops / spec.peak_flops[dtype] * _US_PER_S,
        bytes / spec.memory_bytes_per_s * _US_PER_S,
        spec.launch_us,
    )


def active_power_w(
    spec: DeviceSpec, *, flops: float, bytes: float, latency_us: float, factor: float = 1.0
) -> float:
    """Return the mean power above idle of a call that takes `latency_us`.

        P = min(f · (busy + (pJ/flop · flops + pJ/byte · bytes) / t), limit - idle)

    Linear in operations and bytes like GPU power models since Hong and Kim (ISCA 2010), capped
    because a device at its limit lowers its clocks instead. `factor` f scales the modelling
    constants, to see how much an answer depends on them.
    """
    joules = (spec.pj_per_flop * flops + spec.pj_per_byte * bytes) * _J_PER_PJ
    dynamic_w = joules / (latency_us / _US_PER_S)
    return min(factor * (spec.busy_w + dynamic_w), max(spec.power_limit_w - spec.idle_w, 0.0))


def thermal_rise_c(spec: DeviceSpec, power_w: float, seconds: float, start_c: float = 0.0) -> float:
    """Return the rise over the idle temperature after drawing `power_w` above idle for `seconds`.

    One resistance and one capacity (first-order RC, as in HotSpot, Skadron et al., ISCA 2003):

        rise(t) = P·R + (rise(0) - P·R) · exp(-t/τ)
    """
    settled_c = power_w * spec.resistance_c_per_w
    # expm1 keeps the rise of a call of microseconds, which 1 - exp would lose.
    return start_c + (start_c - settled_c) * math.expm1(-seconds / spec.time_constant_s)


def modelled_energy(
    spec: DeviceSpec, flops: float, bytes: float, latency_us: float
) -> ModelledEnergy:
    """Return the modelled energy of one call of `latency_us`; nothing here was measured.

        E_active = P_active · t        E_idle = P_idle · t        (1 W · 1 µs = 10⁻³ mJ)

    The range re-computes the active power with all constants times `spec.low` and `spec.high`.
    Where the watts hardly vary, such energy ranks like latency.
    """

    def power_w(factor: float) -> float:
        return active_power_w(spec, flops=flops, bytes=bytes, latency_us=latency_us, factor=factor)

    active_w = power_w(1.0)
    return ModelledEnergy(
        active_mj=active_w * latency_us * _MJ_PER_W_US,
        idle_mj=spec.idle_w * latency_us * _MJ_PER_W_US,
        low_mj=power_w(spec.low) * latency_us * _MJ_PER_W_US,
        high_mj=power_w(spec.high) * latency_us * _MJ_PER_W_US,
        power_mean_w=active_w + spec.idle_w,
        temp_rise_c=thermal_rise_c(spec, active_w, latency_us / _US_PER_S),
    )
