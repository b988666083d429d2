"""Price layers by what a table holds of them: the fitted model and the measured rows."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from costprof.costmodel.grouped.intervals import Z90
from costprof.costmodel.grouped.model import GroupedModel, LayerPrediction, Measured
from costprof.costmodel.grouped.points import LayerPoints, Strings

Array = npt.NDArray[np.float64]

OTHER_VERSION_STD = 0.15
OTHER_KERNEL_STD = 0.8
"""Of the log latency of a method priced as another one: what vLLM 0.24's kernels and 0.22's differ
by (root mean square) on 32,079 layers of an H200, where both run Triton's kernel, and over all."""


@dataclass(frozen=True, slots=True)
class LayerPrices:
    """Prices of n layers and the tier of each: [n]."""

    prediction: LayerPrediction
    tier: Strings


def price_layers(
    points: LayerPoints, model: GroupedModel, measured: Measured | None = None
) -> LayerPrices:
    """Price `points`.

    A layer that was measured costs what was read. A method the model does not know (another version
    of a framework, say) is priced as the likest one it knows, with as much doubt more as methods
    were seen to differ, and never as measured.
    """
    if measured is None or not len(measured.points):
        tier = np.full(len(points), "predicted", dtype="<U16")
        return LayerPrices(_as_likest(points, model, None), tier)
    tier = _between(points, measured.points)
    exact = positions_among(layer_keys(points), layer_keys(measured.points))
    known = exact >= 0
    tier[known] = "measured"
    others = _as_likest(points.take(~known), model, measured)
    readings = as_read(measured.take(exact[known]), model)
    return LayerPrices(merged(known, readings, others), tier)


def _as_likest(
    points: LayerPoints, model: GroupedModel, measured: Measured | None
) -> LayerPrediction:
    """Predict `points`, those of an unknown method as the likest and with the doubt of that."""
    likest = with_known_methods(points, model)
    found = model.predict(likest, measured)
    other_version = np.where(likest.framework == points.framework, 0.0, OTHER_VERSION_STD)
    std = np.where(likest.kernel == points.kernel, other_version, OTHER_KERNEL_STD)
    return dataclasses.replace(
        found,
        latency_us=_widened(found.latency_us, std),
        energy_mj=_widened(found.energy_mj, std),
    )


def _widened(quantiles: tuple[Array, Array, Array], std: Array) -> tuple[Array, Array, Array]:
    """Add to 90 % intervals a log error of standard deviation `std` [n]; where it is 0, nothing."""
    low, median, high = quantiles
    more = Z90 * std
    below = np.hypot(np.log(median / low), more)
    above = np.hypot(np.log(high / median), more)
    unchanged = std == 0.0
    return (
        np.where(unchanged, low, median * np.exp(-below)),
        median,
        np.where(unchanged, high, median * np.exp(above)),
    )


def with_known_methods(points: LayerPoints, model: GroupedModel) -> LayerPoints:
    """Return `points`, those of a method unknown to `model` under the name of the likest one."""
    known = sorted({method for part in model.parts.values() for method in part.stages})
    parts = [tuple(method.split("|")) for method in known]
    replaced: dict[str, tuple[str, str, str]] = {}
    for method in np.unique(points.method).tolist():
        if method in known:
            continue
        framework, kernel, precision = method.split("|")
        ranked = sorted(
            (each for each in parts if each[2] == precision),
            key=lambda each: (each[1] != kernel, each[0].split(" ")[0] != framework.split(" ")[0]),
        )
        if ranked:
            replaced[method] = (ranked[0][0], ranked[0][1], precision)
    if not replaced:
        return points
    names = [replaced.get(m, tuple(m.split("|"))) for m in points.method.tolist()]
    renamed = dataclasses.replace(
        points,
        framework=np.array([name[0] for name in names]),
        kernel=np.array([name[1] for name in names]),
    )
    return renamed.with_load(points.load)


def as_read(measured: Measured, model: GroupedModel) -> LayerPrediction:
    """Return readings as prices: what was read, give or take the noise of one reading."""
    scales, energy_noise = model.scales[0], model.scales[2].noise_std ** 2
    noise = scales.noise_variance(measured.points.load.spread)
    half = np.exp(Z90 * np.sqrt(noise))
    energy_half = np.exp(Z90 * np.sqrt(noise + energy_noise))
    latency_us = measured.latency_us
    energy_mj = measured.power_w * latency_us * 1e-3
    return LayerPrediction(
        (latency_us / half, latency_us, latency_us * half),
        (energy_mj / energy_half, energy_mj, energy_mj * energy_half),
        measured.power_w,
        np.ones(len(latency_us), dtype=bool),
    )


def merged(
    first: npt.NDArray[np.bool_], readings: LayerPrediction, others: LayerPrediction
) -> LayerPrediction:
    """Put `readings` where `first` [n] says so and `others` elsewhere, both in order."""

    def column(a: Any, b: Any) -> Any:
        values = np.empty(len(first), dtype=a.dtype)
        values[first], values[~first] = a, b
        return values

    latency = [column(a, b) for a, b in zip(readings.latency_us, others.latency_us, strict=True)]
    energy = [column(a, b) for a, b in zip(readings.energy_mj, others.energy_mj, strict=True)]
    return LayerPrediction(
        (latency[0], latency[1], latency[2]),
        (energy[0], energy[1], energy[2]),
        column(readings.power_w, others.power_w),
        column(readings.known_group, others.known_group),
    )


def _between(points: LayerPoints, measured: LayerPoints) -> Strings:
    """Tell what lies between measured token counts of its curve from what lies beyond."""
    order = np.lexsort((measured.tokens, measured.curve))
    curves, first, count = np.unique(measured.curve[order], return_index=True, return_counts=True)
    tokens = measured.tokens[order]
    where = np.searchsorted(curves, points.curve).clip(max=len(curves) - 1)
    same = curves[where] == points.curve
    lowest, highest = tokens[first[where]], tokens[first[where] + count[where] - 1]
    inside = (points.tokens >= lowest) & (points.tokens <= highest)
    return np.where(same, np.where(inside, "interpolated", "extrapolated"), "predicted").astype(
        "<U16"
    )


def layer_keys(points: LayerPoints) -> Strings:
    """Return what names each layer: [n]."""
    tokens = points.tokens.astype(np.int64).astype(str)
    return np.char.add(np.char.add(points.curve, "|"), tokens)


def positions_among(wanted: Strings, among: Strings) -> npt.NDArray[np.int64]:
    """Return where each wanted key stands among the others: [n], -1 where nowhere."""
    order = np.argsort(among, kind="stable")
    at = np.searchsorted(among[order], wanted).clip(max=len(among) - 1)
    return np.where(among[order[at]] == wanted, order[at], -1)
