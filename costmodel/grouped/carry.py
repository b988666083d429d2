"""What layers of one device would cost on another, by what the datasheets say differs.

    t' = t · (1 - m - c + m · B / B' + c · F / F')
    m  = min(weights / B / t, 1),    c = min(flops / F / t, 1 - m)

The part of a layer's time that its weights need at the source's bandwidth B passes at the target's,
the part its operations need at the ceiling F passes at the target's, the rest takes as long as it
did: launches, caches, clocks. (Habitat scales whole kernels by such ratios; Yu et al., USENIX ATC
2021. Here the share is the layer's own, from its measured time.)

    P' = P · analytic'(work, t') / analytic(work, t),  at most the target's power limit

with the analytic power of both specs (`grouped.power`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from costprof.costmodel.devices import DeviceSpec
from costprof.costmodel.grouped.intervals import Z90
from costprof.costmodel.grouped.model import GroupedModel, Measured
from costprof.costmodel.grouped.points import LayerPoints, Strings
from costprof.costmodel.grouped.power import PowerConstants, layer_power_w
from costprof.costmodel.grouped.unknown_methods import is_known, with_known_methods
from costprof.costmodel.grouped.work import LayerWork, layer_work

Array = npt.NDArray[np.float64]

_US = 1e6
_BEYOND = 1.2  # shares of the time beyond this say the same: the estimate of the bytes is off
_LEAST_DISTANCE = 0.05  # two devices of one datasheet still differ

STRANGE = 10.0
"""Two versions of one kernel can differ by a factor of three, or by nothing."""

TRAITS = (
    "weights",
    "operations",
    "activations",
    "cache",
    "latency",
    "tokens_an_expert",
    "inner",
    "top_k",
)
"""What the error of carrying is taken to depend on."""


@dataclass(frozen=True)
class Source:
    """A device that was measured: its model, its spec and its measured layers, if they are kept."""

    model: GroupedModel
    spec: DeviceSpec
    measured: Measured | None = None


@dataclass(frozen=True)
class Carried:
    """Layers of a source carried over to a target; all [n].

    Attributes:
        log_us: Logarithm of the latency on the target.
        variance: Of the source's log latency, beyond that of a layer it measured.
        log_w, power_variance: The same for power; NaN where the source knows none.
        method: Of the layer: kernel, version and precision.
        strangeness: How many times more doubtful than others it is what its method does: 1 where
            the source knows the method; where it had to take the likest one, `STRANGE`.
        traits: [n, len(TRAITS)], each scaled so that a difference of some units matters.
        spread: Relative standard deviation of the work between drawn routings.
        known_group: Whether the source measured the layer's group.
    """

    log_us: Array
    variance: Array
    log_w: Array
    power_variance: Array
    method: Strings
    strangeness: Array
    traits: Array
    spread: Array
    known_group: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.log_us)

    def take(self, index: npt.NDArray[Any]) -> Carried:
        """Return the layers at `index` (positions or a mask)."""
        return Carried(**{f.name: getattr(self, f.name)[index] for f in dataclasses.fields(self)})


def distance(source: DeviceSpec, target: DeviceSpec) -> float:
    """Return how unlike two devices are: the largest |log ratio| of what their datasheets say."""
    ratios = (
        target.memory_bytes_per_s / source.memory_bytes_per_s,
        _peak(target) / _peak(source),
        target.power_limit_w / source.power_limit_w,
    )
    return max(_LEAST_DISTANCE, *(abs(float(np.log(ratio))) for ratio in ratios))


def carry(source: Source, points: LayerPoints, target: DeviceSpec) -> Carried:
    """Return what `points` cost on a device of `target`, given the `source`.

    The source's latency is its model's, which smooths the readings of measured layers: those carry
    the noise of the routings that happened to be drawn.
    """
    method, known = points.method, is_known(points, source.model)
    points = with_known_methods(points, source.model)
    prices = source.model.predict(points, source.measured)
    log_us = np.log(prices.latency_us[1])
    noise = source.model.scales[0].noise_variance(points.load.spread)
    doubt = ((np.log(prices.latency_us[2]) - log_us) / Z90) ** 2
    energy_doubt = ((np.log(prices.energy_mj[2]) - np.log(prices.energy_mj[1])) / Z90) ** 2
    work, latency_us = layer_work(points), prices.latency_us[1]
    carried_us = carried_latency_us(work, latency_us, source.spec, target)
    ratio = _power_w(work, carried_us, target) / _power_w(work, latency_us, source.spec)
    return Carried(
        log_us=np.log(carried_us),
        variance=np.maximum(doubt - noise, 0.0),
        log_w=np.minimum(np.log(prices.power_w * ratio), np.log(target.power_limit_w)),
        power_variance=np.maximum(energy_doubt - doubt, 0.0),
        method=method,
        strangeness=np.where(known, 1.0, STRANGE),
        traits=_traits(points, work, latency_us, source.spec),
        spread=points.load.spread,
        known_group=prices.known_group,
    )


def carried_latency_us(
    work: LayerWork, latency_us: Array, source: DeviceSpec, target: DeviceSpec
) -> Array:
    """Return the latency [n] on `target` of layers that take `latency_us` [n] on `source`."""
    memory, compute = _shares(work, latency_us, source)
    memory = np.minimum(memory, 1.0)
    compute = np.minimum(compute, 1.0 - memory)
    faster = memory * (1.0 - source.memory_bytes_per_s / target.memory_bytes_per_s)
    faster += compute * (1.0 - _peak(source) / _peak(target))
    return np.asarray(latency_us * (1.0 - faster))


def _shares(work: LayerWork, latency_us: Array, spec: DeviceSpec) -> tuple[Array, Array]:
    """Return the shares of the time that weights and operations need at the ceilings."""
    memory = _US * work.weight_bytes / spec.memory_bytes_per_s / latency_us
    return memory, _US * work.flops / _peak(spec) / latency_us


def _traits(points: LayerPoints, work: LayerWork, latency_us: Array, spec: DeviceSpec) -> Array:
    memory, compute = _shares(work, latency_us, spec)
    rows = work.up.row_bytes + work.down.row_bytes
    moved = rows + work.elementwise_bytes + work.reduce_bytes + work.zero_bytes
    a_byte = _US / spec.memory_bytes_per_s / latency_us
    load = points.load
    columns = {
        "weights": 4.0 * np.minimum(memory, _BEYOND),
        "operations": 5.0 * compute,
        "activations": 4.0 * np.minimum(moved * a_byte, _BEYOND),
        "cache": 3.0 * np.minimum((work.up.tile_bytes + work.down.tile_bytes) * a_byte, _BEYOND),
        "latency": np.log2(latency_us) / 2.0,
        "tokens_an_expert": np.log2((load.assignments + 0.5) / (load.active + 0.5)) / 2.0,
        "inner": np.log2(points.inner) / 2.0,
        "top_k": np.log2(points.top_k),
    }
    return np.stack([columns[name] for name in TRAITS], axis=1)


def _power_w(work: LayerWork, latency_us: Array, spec: DeviceSpec) -> Array:
    return layer_power_w(work, latency_us, PowerConstants.of_spec(spec), spec.power_limit_w)


def _peak(spec: DeviceSpec) -> float:
    """The ceiling of the matrix units; a datasheet's narrower types scale alike."""
    return max(spec.peak_flops.values())
