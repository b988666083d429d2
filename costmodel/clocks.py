"""Power and time at lower clocks: what a device does when its power limit is reached.

Switching a gate costs C·V², so power that follows the clock falls with f·V² and the energy of an
operation with V² (Chandrakasan et al., IEEE JSSC 27(4), 1992). Voltage falls with the clock along
a straight line to the least one, as DVFS tables nearly do. Off-chip memory has a clock and a supply
of its own: traffic takes the same time and energy at any core clock.
"""

from __future__ import annotations

from typing import NamedTuple

from costprof.costmodel.devices import DeviceSpec
from costprof.costmodel.physics import roofline

_J_PER_PJ = 1e-12
_US_PER_S = 1e6
_HALVINGS = 40


class ClockedCall(NamedTuple):
    """One call at a core clock: `clock` and `voltage` are shares of their largest."""

    clock: float
    voltage: float
    latency_us: float
    power_w: float


def relative_voltage(spec: DeviceSpec, clock: float) -> float:
    """Return the core voltage at `clock`, both as shares of their largest."""
    above = (clock - spec.min_clock) / (1.0 - spec.min_clock)
    return spec.min_voltage + (1.0 - spec.min_voltage) * max(above, 0.0)


def clocked_call(
    spec: DeviceSpec, *, flops: float, bytes: float, dtype: str, clock: float = 1.0
) -> ClockedCall:
    """Return time and mean power of a call at the roofline at the core clock `clock` in (0, 1].

        t = launch + max(flops / (c · peak), bytes / bandwidth)
        P = idle + busy · c · v² + (pJ/flop · v² · flops + pJ/byte · bytes) / t

    Modelled, whatever the limit; at clock 1 it is `active_power_w` plus idle power.

    Raises:
        KeyError: the spec has no ceiling for `dtype`.
    """
    full = roofline(spec, flops=flops, bytes=bytes, dtype=dtype)
    latency_us = full.launch_us + max(full.compute_us / clock, full.memory_us)
    voltage = relative_voltage(spec, clock)
    joules = (spec.pj_per_flop * voltage**2 * flops + spec.pj_per_byte * bytes) * _J_PER_PJ
    static_w = spec.idle_w + spec.busy_w * clock * voltage**2
    return ClockedCall(clock, voltage, latency_us, static_w + joules / (latency_us / _US_PER_S))


def capped_call(
    spec: DeviceSpec, *, flops: float, bytes: float, dtype: str, limit_w: float | None = None
) -> ClockedCall:
    """Return the call at the highest core clock whose mean power keeps to `limit_w`.

    None: the limit of the spec. Power rises with the clock, so halving finds it. Where even the
    least clock draws more, as traffic alone may, it is that one.
    """
    limit = spec.power_limit_w if limit_w is None else limit_w

    def at(clock: float) -> ClockedCall:
        return clocked_call(spec, flops=flops, bytes=bytes, dtype=dtype, clock=clock)

    if at(1.0).power_w <= limit:
        return at(1.0)
    low, high = spec.min_clock, 1.0
    if at(low).power_w > limit:
        return at(low)
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if at(middle).power_w <= limit else (low, middle)
    return at(low)
