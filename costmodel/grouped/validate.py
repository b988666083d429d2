"""Predict layers left out of the fit: to choose how to predict, and how wide intervals must be.

Four things are left out: the layer's shape from the constants and trees; its shard and routing,
nine tenths of its group, or its token count from its group's field. The last from the trees too,
which would otherwise know from other shapes what happens at that count.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from costprof.costmodel.grouped.intervals import Calibration, doubt_bins
from costprof.costmodel.grouped.model import Base, GroupedModel, GroupFields, Measured, Part

Array = npt.NDArray[np.float64]

_BOTH = (0.5, 0.5)
_FIELDS = {"trees + field": (1.0, 0.0), "analytic + field": (0.0, 1.0), "both fields": _BOTH}
_POWERS = {"field": 0.0, "field + neighbours": 0.5, "neighbours": 1.0}
_CLEARLY = 0.9  # error of one field alone, as a share of both fields', from which it is chosen
_SPARSE = 0.1  # share kept when the doubt of thinly measured groups is calibrated
_LARGEST_GROUP = 600  # of a larger one a sample is enough to calibrate by
_LEAST = 4


@dataclass(frozen=True)
class LeftOut:
    """Layers predicted without what was left out; all [n].

    `learned` and `analytic` are log predictions over the two fields (of a new shape: without any),
    with their variances; `log_power` is NaN where no power is known, `between_power` where no
    neighbours' is.
    """

    log_us: Array
    learned: Array
    learned_variance: Array
    analytic: Array
    analytic_variance: Array
    log_w: Array
    log_power: Array
    between_power: Array
    power_variance: Array
    bins: npt.NDArray[np.int64]

    def error(self, weights: tuple[float, float]) -> Array:
        """Return log(measured / predicted) with the fields weighing `weights`."""
        return self.log_us - weights[0] * self.learned - weights[1] * self.analytic

    def power_error(self, weight: float) -> Array:
        """Return log(measured / predicted power) [n], the neighbours' power weighing `weight`."""
        mixed = (1.0 - weight) * self.log_power + weight * self.between_power
        return self.log_w - np.where(np.isfinite(mixed), mixed, self.log_power)

    def variance(self, weights: tuple[float, float]) -> Array:
        """Return what the model thinks of that error."""
        return weights[0] * self.learned_variance + weights[1] * self.analytic_variance


def chosen_model(
    model: GroupedModel, measured: Measured, base: Base, without_tokens: Mapping[int, Part]
) -> tuple[GroupedModel, dict[str, Any]]:
    """Return `model` with the better way to predict, calibrated, and the figures it was chosen by.

    `base` predicts every layer by the part that has not seen its shape. `without_tokens` are parts
    that have seen neither a fold's shapes nor some token counts; see `token_set`.
    """
    groups = _within_groups(model, measured, without_tokens)
    errors = {name: _mape(groups.error(weights)) for name, weights in _FIELDS.items()}
    best = min(errors, key=errors.__getitem__)
    if not errors[best] <= _CLEARLY * errors["both fields"]:
        best = "both fields"
    powers, power = _power_choice(groups)
    model = dataclasses.replace(model, fields=_FIELDS[best], power_between=_POWERS[power])
    figures: dict[str, Any] = {
        "new_shapes": {},
        "known_groups": {name: _figures(groups.error(each)) for name, each in _FIELDS.items()},
        "power_between_counts": powers,
        "chosen": {
            "new_shapes": "analytic x trees",
            "known_groups": best,
            "power_between_counts": power,
        },
    }
    kinds = [(groups, model.fields)]
    if len(model.parts) > 1:
        new = _new_shapes(model, measured, base)
        ways = {"analytic": (0.0, 1.0), "analytic x trees": (1.0, 0.0)}
        figures["new_shapes"] = {name: _figures(new.error(way)) for name, way in ways.items()}
        better = min(ways, key=lambda name: _mape(new.error(ways[name])))
        figures["chosen"]["new_shapes"] = better
        model = dataclasses.replace(model, use_trees=better == "analytic x trees")
        kinds.append((new, ways[better]))
    return _calibrated(model, kinds), figures


def _power_choice(groups: LeftOut) -> tuple[dict[str, dict[str, float]], str]:
    """Return the errors of each way to predict power between measured token counts, and the best.

    Where no power lies between others the field is all there is.
    """
    between = np.isfinite(groups.between_power) & np.isfinite(groups.log_w)
    errors = {name: groups.power_error(weight)[between] for name, weight in _POWERS.items()}
    figures = {name: _figures(error) for name, error in errors.items()}
    return figures, min(_POWERS, key=lambda name: figures[name]["mape"])


def token_set(tokens: Array, sets: int) -> npt.NDArray[np.int64]:
    """Deal token counts into `sets` in turn: the set [n] of each, -1 the smallest and largest."""
    counts, at = np.unique(tokens, return_inverse=True)
    number = np.arange(len(counts)) % sets
    number[[0, -1]] = -1
    return np.asarray(number[at], dtype=np.int64)


def _within_groups(
    model: GroupedModel, measured: Measured, without_tokens: Mapping[int, Part]
) -> LeftOut:
    rng = np.random.default_rng(0)
    sets = token_set(measured.points.tokens, max(len(without_tokens), 1))
    found = []
    for name in np.unique(measured.points.group):
        at = np.flatnonzero(measured.points.group == name)
        if len(at) < _LEAST:
            continue
        fold = model.fold_of_shape[str(measured.points.shape[at[0]])]
        if fold in without_tokens:
            held = sets[at] == fold
            blind = dataclasses.replace(model, parts={**model.parts, fold: without_tokens[fold]})
            found += _rest(blind, measured.take(at), ~held)
        if len(at) > _LARGEST_GROUP:
            at = np.sort(rng.choice(at, _LARGEST_GROUP, replace=False))
        own = measured.take(at)
        found.append(_curve_by_curve(model, own))
        found += _rest(model, own, rng.random(len(at)) < _SPARSE)
    empty = np.empty(0)
    columns: dict[str, Any] = {
        field.name: np.concatenate([empty, *(getattr(each, field.name) for each in found)])
        for field in dataclasses.fields(LeftOut)
    }
    return LeftOut(**{**columns, "bins": columns["bins"].astype(np.int64)})


def _rest(model: GroupedModel, own: Measured, kept: npt.NDArray[np.bool_]) -> list[LeftOut]:
    """Predict the layers of a group that were not kept from those that were."""
    if kept.sum() < 2 or kept.all():
        return []
    rest = own.take(~kept)
    fields = GroupFields.of(model, own.take(kept))
    found = fields.predict(rest.points)
    bins = doubt_bins(found.novelty, np.ones(len(rest.points), dtype=bool), rest.points.tokens)
    return [
        LeftOut(
            np.log(rest.latency_us),
            found.learned,
            found.learned_variance,
            found.analytic,
            found.analytic_variance,
            np.log(rest.power_w),
            found.log_power,
            found.between_power,
            found.power_variance,
            bins,
        )
    ]


def _curve_by_curve(model: GroupedModel, own: Measured) -> LeftOut:
    """Predict each layer without its curve, by the partitioned inverse."""
    fields = GroupFields.of(model, own)
    base = model.base(own.points, fields.fold)
    parts = np.unique(own.points.curve, return_inverse=True)[1]
    learned, learned_variance = fields.learned.left_out(parts)
    analytic, analytic_variance = fields.analytic.left_out(parts)
    log_power = np.log(base.power_w)
    powers = model.scales[2]
    power_variance = np.full(len(parts), powers.prior_variance() + powers.noise_std**2)
    if fields.power is not None:
        read = np.flatnonzero(np.isfinite(own.power_w) & np.isfinite(base.power_w))
        shift, power_variance[read] = fields.power.left_out(parts[read])
        log_power[read] = np.minimum(log_power[read] + shift, np.log(model.limit_w))
    scales = model.scales[0]
    left = learned_variance - scales.noise_variance(own.points.load.spread)
    novelty = np.clip(left / scales.prior_variance(), 0.0, 1.0)
    return LeftOut(
        np.log(own.latency_us),
        np.log(base.latency_us) + learned,
        learned_variance,
        np.log(base.analytic_us) + analytic,
        analytic_variance,
        np.log(own.power_w),
        log_power,
        np.full(len(parts), np.nan),
        power_variance,
        doubt_bins(novelty, np.ones(len(parts), dtype=bool), own.points.tokens),
    )


def _new_shapes(model: GroupedModel, measured: Measured, base: Base) -> LeftOut:
    learned, _, powers = model.scales
    size = len(measured.points)
    # As in `GroupedModel.centre`, whichever way the median is predicted.
    variance = learned.prior_variance() + learned.noise_variance(measured.points.load.spread)
    return LeftOut(
        np.log(measured.latency_us),
        np.log(base.latency_us),
        variance,
        np.log(base.analytic_us),
        variance,
        np.log(measured.power_w),
        np.log(base.power_w),
        np.full(size, np.nan),
        np.full(size, powers.prior_variance() + powers.noise_std**2),
        doubt_bins(np.ones(size), np.zeros(size, dtype=bool), measured.points.tokens),
    )


def _calibrated(
    model: GroupedModel, kinds: list[tuple[LeftOut, tuple[float, float]]]
) -> GroupedModel:
    latency, energy, bins = [], [], []
    for left_out, weights in kinds:
        error, variance = left_out.error(weights), left_out.variance(weights)
        latency.append(np.abs(error) / np.sqrt(variance))
        energy_error = np.abs(error + left_out.power_error(model.power_between))
        energy.append(energy_error / np.sqrt(variance + left_out.power_variance))
        bins.append(left_out.bins)
    at, scores = np.concatenate(bins), np.concatenate(energy)
    known = np.isfinite(scores)
    return dataclasses.replace(
        model,
        latency_intervals=Calibration.of_scores(np.concatenate(latency), at),
        energy_intervals=Calibration.of_scores(scores[known], at[known]),
    )


def _mape(log_error: Array) -> float:
    return float(np.abs(np.expm1(-log_error)).mean()) if len(log_error) else np.inf


def _figures(log_error: Array) -> dict[str, float]:
    error = 100.0 * np.abs(np.expm1(-log_error))
    if not len(error):
        return {"points": 0.0, "mape": 0.0, "median": 0.0, "p90": 0.0}
    return {
        "points": float(len(error)),
        "mape": float(error.mean()),
        "median": float(np.median(error)),
        "p90": float(np.quantile(error, 0.9)),
    }
