"""The analytic time of an MoE layer: a roofline for each product, and what surrounds them.

    t = launch + Σ_products bound(product)
        + elementwise / B_e + reduce / B_r + zero / B_z
        + grid · t_g + copies · t_c + experts · t_x
    bound = (compute^p + memory^p + cache^p + depth^p)^(1/p)
    compute = flops / F,   memory = weights / B_w + rows / B_a,
    cache = tile loads / B_l,   depth = steps · t_s

A roofline (Williams et al., CACM 52(4), 2009) with one more ceiling, the L2 cache, and a floor: a
tile takes at least its trips along the inner dimension one after the other. p softens the corner.
Constants are found per kernel and precision (`fit_stages`); those of a device nobody measured
come from its spec (`StageConstants.of_spec`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from costprof.costmodel.devices import DeviceSpec
from costprof.costmodel.grouped.work import LayerWork, Product

Array = npt.NDArray[np.float64]

_US = 1e6


@dataclass(frozen=True, slots=True)
class StageConstants:
    """What a device and a kernel reach together.

    Attributes:
        launch_us: A layer that does nothing.
        flops_per_s: F.
        weight_bytes_per_s, row_bytes_per_s: B_w and B_a, of memory.
        cache_bytes_per_s: B_l.
        step_us: t_s.
        elementwise_bytes_per_s, reduce_bytes_per_s, zero_bytes_per_s: B_e, B_r, B_z.
        program_us, copy_us, expert_us: t_g, t_c, t_x.
        corner: p - 1.
    """

    launch_us: float
    flops_per_s: float
    weight_bytes_per_s: float
    row_bytes_per_s: float
    cache_bytes_per_s: float
    step_us: float
    elementwise_bytes_per_s: float
    reduce_bytes_per_s: float
    zero_bytes_per_s: float
    program_us: float
    copy_us: float
    expert_us: float
    corner: float

    @classmethod
    def of_spec(cls, spec: DeviceSpec) -> StageConstants:
        """Return what kernels on a device of `spec` usually reach: where a fit starts from.

        Shares of the datasheet's ceilings; the caches' and the small ones are rules of thumb.
        """
        memory = spec.memory_bytes_per_s
        return cls(
            launch_us=15.0,
            flops_per_s=0.7 * max(spec.peak_flops.values()),
            weight_bytes_per_s=0.83 * memory,
            row_bytes_per_s=1.7 * memory,
            cache_bytes_per_s=2.5 * memory,
            step_us=0.1,
            elementwise_bytes_per_s=0.6 * memory,
            reduce_bytes_per_s=0.6 * memory,
            zero_bytes_per_s=0.8 * memory,
            program_us=5e-5,
            copy_us=5e-5,
            expert_us=5e-3,
            corner=1.0,
        )

    def to_logs(self) -> Array:
        """Return the logarithms of the constants."""
        return np.asarray(np.log(np.array(dataclasses.astuple(self))))

    @classmethod
    def of_logs(cls, logs: npt.ArrayLike) -> StageConstants:
        """Read what `to_logs` wrote."""
        return cls(*np.exp(np.asarray(logs, dtype=np.float64)).tolist())


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Where the time goes, all in µs [n]; they add up to the whole."""

    launch_us: Array
    up_us: Array
    down_us: Array
    elementwise_us: Array
    reduce_us: Array
    scheduling_us: Array

    @property
    def total_us(self) -> Array:
        """The layer's time."""
        parts = (getattr(self, field.name) for field in dataclasses.fields(self))
        return np.asarray(np.sum(np.stack(list(parts)), axis=0))


def stage_times(work: LayerWork, constants: StageConstants) -> StageTimes:
    """Return the analytic times of `work`."""
    c = constants
    return StageTimes(
        launch_us=np.full(work.copies.shape, c.launch_us),
        up_us=_bound_us(work.up, c),
        down_us=_bound_us(work.down, c),
        elementwise_us=_US * work.elementwise_bytes / c.elementwise_bytes_per_s,
        reduce_us=_US
        * (work.reduce_bytes / c.reduce_bytes_per_s + work.zero_bytes / c.zero_bytes_per_s),
        scheduling_us=work.grid * c.program_us
        + work.copies * c.copy_us
        + work.experts * c.expert_us,
    )


def _bound_us(product: Product, c: StageConstants) -> Array:
    power = 1.0 + c.corner
    bounds = (
        _US * product.flops / c.flops_per_s,
        _US * (product.weight_bytes / c.weight_bytes_per_s + product.row_bytes / c.row_bytes_per_s),
        _US * product.tile_bytes / c.cache_bytes_per_s,
        product.steps * c.step_us,
    )
    stacked = np.stack(bounds)
    highest = stacked.max(axis=0)  # taken out, as powers of it may overflow
    return np.asarray(highest * ((stacked / highest) ** power).sum(axis=0) ** (1.0 / power))
