"""Active energy between and beyond the token counts it is known at.

Power varies slowly and smoothly with tokens where energy varies as fast as latency, so power is
interpolated and multiplied with the predicted latency. Everything keeps the `energy_source` of
the points it comes from; a curve without any is priced by the power model and says `modelled`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from costprof.costmodel.devices import DeviceSpec
from costprof.costmodel.features import Array
from costprof.costmodel.measurements import ENERGY_SOURCES, MeasuredCurve
from costprof.costmodel.physics import modelled_energy
from costprof.costmodel.rows import EnergySource

_MJ_PER_W_US = 1e-3
_LEAST = 1e-3


@dataclass(frozen=True, slots=True)
class PowerCurve:
    """Mean active power of one curve over tokens, all arrays [k] and ascending in tokens.

    Attributes:
        watts: Active power, above idle.
        low, high: Bounds of the energy relative to its value, at most and at least 1.
        heat_c_per_mj: Modelled temperature rise of a call per active millijoule.
        idle_w: Drawn doing nothing.
        source: Where the energies come from.
    """

    tokens: Array
    watts: Array
    low: Array
    high: Array
    heat_c_per_mj: float
    idle_w: float
    source: EnergySource

    def watts_at(self, tokens: Array) -> Array:
        """Return active power at `tokens` [n]: linear in log2 tokens, held beyond the ends."""
        return np.interp(np.log2(tokens), np.log2(self.tokens), self.watts)

    def energy_mj(self, tokens: Array, latency_us: Array) -> Array:
        """Return active energy [n] of calls at `tokens` that take `latency_us`."""
        return self.watts_at(tokens) * latency_us * _MJ_PER_W_US

    def interval_mj(self, tokens: Array, latency_us: Array) -> tuple[Array, Array]:
        """Return p05 and p95 of the energy, both [n], from p05, p50, p95 latencies [3, n].

        The doubt about the power and about the latency are independent, so they add as squares.
        """
        energy = self.energy_mj(tokens, latency_us[1])
        at = np.log2(tokens)
        low = np.log(np.interp(at, np.log2(self.tokens), self.low))
        high = np.log(np.interp(at, np.log2(self.tokens), self.high))
        below = np.hypot(low, np.log(latency_us[1] / latency_us[0]))
        above = np.hypot(high, np.log(latency_us[2] / latency_us[1]))
        return energy * np.exp(-below), energy * np.exp(above)


def known_energy(curve: MeasuredCurve) -> tuple[EnergySource | None, list[int]]:
    """Return the best source the rows of `curve` have, and the points whose energy is of it."""
    for source in ENERGY_SOURCES:
        points = [
            point
            for point, row in enumerate(curve.rows)
            if row["energy_source"] == source and (row["energy_active_mj"] or 0.0) > 0.0
        ]
        if points:
            return cast(EnergySource, source), points
    return None, []


def heat_c_per_mj(spec: DeviceSpec) -> float:
    """Return the temperature rise of a call per millijoule: R / τ, as calls are much shorter."""
    return spec.resistance_c_per_w / spec.time_constant_s / 1e3


def power_curve(curve: MeasuredCurve, spec: DeviceSpec) -> PowerCurve:
    """Return the power of `curve`: of its rows, or of the power model of `spec`."""
    source, points = known_energy(curve)
    if source is None:
        return _modelled(curve, spec)
    rows = [curve.rows[point] for point in points]
    energy = np.array([row["energy_active_mj"] for row in rows])
    latency = curve.p50[points]
    low = np.array([_or(row["energy_mj_low"], row["energy_active_mj"]) for row in rows])
    high = np.array([_or(row["energy_mj_high"], row["energy_active_mj"]) for row in rows])
    idle = [row["energy_idle_mj"] for row in rows]
    rise = [row["temp_rise_c"] for row in rows]
    watts = energy / latency / _MJ_PER_W_US
    fallback_w, heat = spec.idle_w, heat_c_per_mj(spec)
    return PowerCurve(
        tokens=curve.tokens[points],
        watts=watts,
        # An interval that reaches zero says "a small part of it": logarithms follow.
        low=np.clip(low / energy, _LEAST, 1.0),
        high=np.maximum(high / energy, 1.0),
        # The rise in a row is that of the modelled energy, and has nothing to do with another.
        heat_c_per_mj=(
            heat
            if None in rise or source != "modelled"
            else float(np.median(np.array(rise) / energy))
        ),
        idle_w=(
            fallback_w
            if None in idle
            else float(np.median(np.array(idle) / latency / _MJ_PER_W_US))
        ),
        source=source,
    )


def _modelled(curve: MeasuredCurve, spec: DeviceSpec) -> PowerCurve:
    calls = zip(*curve.measured_work, curve.p50, strict=True)
    energies = [modelled_energy(spec, *(float(value) for value in call)) for call in calls]
    active = np.array([energy.active_mj for energy in energies])
    return PowerCurve(
        tokens=curve.tokens,
        watts=active / curve.p50 / _MJ_PER_W_US,
        low=np.array([energy.low_mj for energy in energies]) / active,
        high=np.array([energy.high_mj for energy in energies]) / active,
        heat_c_per_mj=heat_c_per_mj(spec),
        idle_w=spec.idle_w,
        source="modelled",
    )


def _or(value: float | None, fallback: float) -> float:
    return fallback if value is None else value
