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
from costprof.costmodel.grouped.unknown_methods import (
    OTHER_VERSION_STD,
    doubt_std,
    is_known,
    likest_methods,
    with_constants_of,
    with_known_methods,
)

Array = npt.NDArray[np.float64]


_LEAST_READINGS = 6


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
    were seen to differ; where layers of its group were measured, by what those were off.
    """
    if measured is None or not len(measured.points):
        tier = np.full(len(points), "predicted", dtype="<U16")
        return LayerPrices(_as_likest(points, model, None), tier)
    tier = _between(points, measured.points)
    exact = positions_among(layer_keys(points), layer_keys(measured.points))
    known = exact >= 0
    tier[known] = "measured"
    others = _predicted(points.take(~known), tier[~known], model, measured)
    readings = as_read(measured.take(exact[known]), model)
    return LayerPrices(merged(known, readings, others), tier)


def _predicted(
    points: LayerPoints, tier: Strings, model: GroupedModel, measured: Measured
) -> LayerPrediction:
    strange = ~is_known(points, model)
    read = strange & np.isin(points.group, np.unique(measured.points.group))
    if not read.any():
        return _as_likest(points, model, measured)
    own = _by_own_readings(points.take(read), tier[read], model, measured)
    return merged(read, own, _as_likest(points.take(~read), model, measured))


def _as_likest(
    points: LayerPoints, model: GroupedModel, measured: Measured | None
) -> LayerPrediction:
    """Predict `points`, those of an unknown method as the likest and with the doubt of that."""
    found = model.predict(with_known_methods(points, model), measured)
    std = doubt_std(points, model)
    return dataclasses.replace(
        found,
        latency_us=_widened(found.latency_us, std),
        energy_mj=_widened(found.energy_mj, std),
    )


def _by_own_readings(
    points: LayerPoints, tier: Strings, model: GroupedModel, measured: Measured
) -> LayerPrediction:
    """Predict `points` of unknown methods, whose groups are among those `measured`.

    The model has the likest method's constants, and each method one factor: the median of its
    readings over what that says. What is left is the group's own, as of any method. As the model
    was not calibrated on such, there is more doubt: by how far half of the readings is off when it
    is priced by the other half, and beyond the measured token counts of a curve, that of another
    version.
    """
    methods = np.unique(points.method)
    alike = with_constants_of(model, likest_methods(methods.tolist(), model))
    read = measured.take(np.isin(measured.points.method, methods))
    base = alike.base(read.points)
    off = np.log(read.latency_us / (base.latency_us if model.use_trees else base.analytic_us))
    medians = np.array([np.median(off[read.points.method == method]) for method in methods])
    factor = np.exp(medians)[np.searchsorted(methods, points.method)]
    of_reading = np.exp(medians)[np.searchsorted(methods, read.points.method)]
    scaled = dataclasses.replace(read, latency_us=read.latency_us / of_reading)
    found = alike.predict(points, scaled)
    missed = _missed_std(alike, scaled, methods)[np.searchsorted(methods, points.method)]
    std = np.where(tier == "interpolated", missed, np.maximum(missed, OTHER_VERSION_STD))
    return dataclasses.replace(
        found,
        latency_us=_widened(_times(found.latency_us, factor), std),
        energy_mj=_widened(_times(found.energy_mj, factor), std),
    )


def _missed_std(model: GroupedModel, read: Measured, methods: Strings) -> Array:
    """Return by what every other reading of each of `methods` misses the rest, as std: [methods].

    Of too few readings to tell, that of another version.
    """
    order = np.lexsort((read.points.tokens, read.points.curve))
    missed = np.empty(len(order))
    for half in (order[::2], order[1::2]):
        rest = read.take(np.setdiff1d(order, half))
        told = model.predict(read.points.take(half), rest).latency_us[1]
        missed[half] = np.abs(np.log(read.latency_us[half] / told))
    own = [missed[read.points.method == method] for method in methods]
    return np.array(
        [
            np.quantile(each, 0.9) / Z90 if len(each) >= _LEAST_READINGS else OTHER_VERSION_STD
            for each in own
        ]
    )


def _times(quantiles: tuple[Array, Array, Array], factor: Array) -> tuple[Array, Array, Array]:
    low, median, high = quantiles
    return low * factor, median * factor, high * factor


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
