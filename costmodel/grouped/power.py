"""The analytic power of a device while an MoE layer runs over and over.

    P = min(static + (e_f · flops + e_w · weights + e_c · tile loads) / t, limit)

Linear in operations and bytes like GPU power models since Hong and Kim (ISCA 2010). `static` is
what the chip draws at its clocks with nothing to do; a device at its limit lowers the clocks, which
lengthens t instead of raising P.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from costprof.costmodel.devices import DeviceSpec
from costprof.costmodel.grouped.work import LayerWork, taken

Array = npt.NDArray[np.float64]

_W_US_PER_PJ = 1e-6  # 1 pJ in 1 µs is 1e-6 W
_OUTLIER = 0.1
_PRIOR = 0.3
_MOST_POINTS = 4000


@dataclass(frozen=True, slots=True)
class PowerConstants:
    """`static_w`, and the energy of an operation, a weight's byte and a byte tiles load."""

    static_w: float
    pj_per_flop: float
    pj_per_weight_byte: float
    pj_per_cache_byte: float

    @classmethod
    def of_spec(cls, spec: DeviceSpec) -> PowerConstants:
        """Return modelling constants of a device nobody measured."""
        return cls(spec.idle_w + spec.busy_w, spec.pj_per_flop, spec.pj_per_byte, 10.0)

    @classmethod
    def typical(cls, known: Collection[PowerConstants]) -> PowerConstants:
        """Return the geometric means of `known` (one or more): for a method nobody metered."""
        logs = np.log(np.array([dataclasses.astuple(each) for each in known]))
        return cls(*np.exp(logs.mean(axis=0)).tolist())


def layer_power_w(
    work: LayerWork, latency_us: Array, constants: PowerConstants, limit_w: float
) -> Array:
    """Return the analytic mean power [n] of layers that take `latency_us` [n]."""
    picojoules = (
        constants.pj_per_flop * work.flops
        + constants.pj_per_weight_byte * work.weight_bytes
        + constants.pj_per_cache_byte * (work.up.tile_bytes + work.down.tile_bytes)
    )
    return np.minimum(constants.static_w + picojoules / latency_us * _W_US_PER_PJ, limit_w)


def fit_power_constants(
    work: LayerWork, latency_us: Array, power_w: Array, start: PowerConstants, limit_w: float
) -> PowerConstants:
    """Return the constants that come closest to `power_w` [n], robustly, near `start`."""
    if len(power_w) > _MOST_POINTS:
        chosen = np.random.default_rng(0).choice(len(power_w), _MOST_POINTS, replace=False)
        work, latency_us, power_w = taken(work, chosen), latency_us[chosen], power_w[chosen]
    prior, target = np.log(np.array(dataclasses.astuple(start))), np.log(power_w)

    def errors(logs: Array) -> Array:
        power = layer_power_w(work, latency_us, PowerConstants(*np.exp(logs).tolist()), limit_w)
        return np.concatenate([np.log(power) - target, _PRIOR * (logs - prior)])

    found = least_squares(errors, prior, loss="soft_l1", f_scale=_OUTLIER, max_nfev=60)
    return PowerConstants(*np.exp(found.x).tolist())
