"""Fit the model of whole MoE layers: constants, trees across folds of shapes, fields, intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from costprof.costmodel.devices import DeviceSpec
from costprof.costmodel.grouped.features import power_features
from costprof.costmodel.grouped.field import FieldScales, Sites
from costprof.costmodel.grouped.fit_field import fit_scales
from costprof.costmodel.grouped.fit_stages import fit_stage_constants
from costprof.costmodel.grouped.fit_trees import fit_trees
from costprof.costmodel.grouped.intervals import Calibration, doubt_bins
from costprof.costmodel.grouped.model import (
    WHOLE,
    Base,
    GroupedModel,
    GroupFields,
    Measured,
    Part,
    analytic_power_w,
    analytic_us,
    part_base,
)
from costprof.costmodel.grouped.points import LayerPoints
from costprof.costmodel.grouped.power import PowerConstants, fit_power_constants
from costprof.costmodel.grouped.stage_time import StageConstants
from costprof.costmodel.grouped.work import LayerWork, layer_work, taken

Array = npt.NDArray[np.float64]
Progress = Callable[[str, int, int], None]

LEAST_LAYERS = 200
"""Layers from which this model is worth fitting."""

FOLDS = 5
_LEAST_OF_A_METHOD = 20
_LEAST_POWERS = 200
_PAIRS = ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5))  # weights of the learned and the analytic field
_SPARSE = 0.1  # share kept when the doubt of thinly measured groups is calibrated
_LARGEST_GROUP = 600  # of it, a sample is enough to calibrate by


@dataclass(frozen=True)
class GroupedFit:
    """The model, and the cross-validated figures it was chosen by: name → errors in percent."""

    model: GroupedModel
    candidates: dict[str, dict[str, float]]


@dataclass(frozen=True)
class _LeftOut:
    """Errors of left-out predictions, and what the intervals are calibrated by; all [n]."""

    latency_error: Array
    latency_std: Array
    energy_error: Array
    energy_std: Array
    bins: npt.NDArray[np.int64]


def fit_grouped(
    measured: Measured, spec: DeviceSpec, progress: Progress | None = None
) -> GroupedFit:
    """Fit `measured` layers of a device of `spec`; the same layers give the same model."""
    tell = progress or (lambda stage, done, total: None)
    points, work = measured.points, layer_work(measured.points)
    fold_of_shape = _folds(points)
    fold = np.array([fold_of_shape[shape] for shape in points.shape.tolist()])
    start, start_power = StageConstants.of_spec(spec), PowerConstants.of_spec(spec)
    names = [WHOLE, *sorted(set(fold.tolist()))] if len(fold_of_shape) > 1 else [WHOLE]
    parts: dict[int, Part] = {}
    for done, name in enumerate(names):
        tell("fitting layers", done, len(names) + 2)
        keep = np.flatnonzero(fold != name)
        parts[name] = _fit_part(
            measured, taken(work, keep), keep, start, start_power, spec.power_limit_w
        )
    if len(names) == 1:
        fold_of_shape = dict.fromkeys(fold_of_shape, WHOLE)
        fold[:] = WHOLE
    model = GroupedModel(
        parts=parts,
        fold_of_shape=fold_of_shape,
        start=start,
        start_power=start_power,
        limit_w=spec.power_limit_w,
        use_trees=True,
        fields=(1.0, 0.0),
        scales=(FieldScales(), FieldScales(), FieldScales(noise_std=0.05)),
        latency_intervals=Calibration.of_scores(np.empty(0), np.empty(0, dtype=np.int64)),
        energy_intervals=Calibration.of_scores(np.empty(0), np.empty(0, dtype=np.int64)),
    )
    tell("fitting layers", len(names), len(names) + 2)
    base = _crossed(model, points, work, fold)
    model = dataclasses.replace(model, scales=_scales(measured, base))
    tell("fitting layers", len(names) + 1, len(names) + 2)
    return _chosen(model, measured, base)


def _folds(points: LayerPoints) -> dict[str, int]:
    """Deal the shapes into folds, the largest first, so that folds weigh alike."""
    shapes, sizes = np.unique(points.shape, return_counts=True)
    weight = [0] * min(FOLDS, len(shapes))
    dealt = {}
    for at in np.argsort(-sizes, kind="stable"):
        lightest = int(np.argmin(weight))
        dealt[str(shapes[at])] = lightest
        weight[lightest] += int(sizes[at])
    return dealt


def _fit_part(
    measured: Measured,
    work: LayerWork,
    keep: npt.NDArray[np.int64],
    start: StageConstants,
    start_power: PowerConstants,
    limit_w: float,
) -> Part:
    points, latency_us = measured.points.take(keep), measured.latency_us[keep]
    power_w = measured.power_w[keep]
    stages = {}
    for method, at in _methods(points):
        stages[method] = fit_stage_constants(taken(work, at), latency_us[at], start)
    analytic, features = analytic_us(stages, points, work, start)
    time = fit_trees(features, np.log(latency_us / analytic))
    known = np.flatnonzero(np.isfinite(power_w))
    if len(known) < _LEAST_POWERS:
        return Part(stages, time, {}, None)
    predicted_us = analytic * np.exp(time.predict(features))
    some, some_work = points.take(known), taken(work, known)
    power_w, some_us = power_w[known], predicted_us[known]
    powers = {}
    for method, at in _methods(some):
        powers[method] = fit_power_constants(
            taken(some_work, at), some_us[at], power_w[at], start_power, limit_w
        )
    first = analytic_power_w(powers, some, some_work, some_us, start_power, limit_w)
    x = power_features(features[known], some_work, some_us)
    # Readings of power have a heavy tail of low outliers, hence the absolute error.
    ratio = fit_trees(x, np.log(power_w / first), loss="absolute_error")
    return Part(stages, time, powers, ratio)


def _methods(points: LayerPoints) -> list[tuple[str, npt.NDArray[np.int64]]]:
    found = [(str(m), np.flatnonzero(points.method == m)) for m in np.unique(points.method)]
    return [(method, at) for method, at in found if len(at) >= _LEAST_OF_A_METHOD]


def _crossed(
    model: GroupedModel, points: LayerPoints, work: LayerWork, fold: npt.NDArray[np.int64]
) -> Base:
    """Predict every layer by the part that has not seen its shape."""
    columns = np.empty((3, len(points)))
    for name in np.unique(fold):
        at = np.flatnonzero(fold == name)
        base = part_base(model.parts[int(name)], points.take(at), taken(work, at), model)
        columns[:, at] = base.analytic_us, base.latency_us, base.power_w
    return Base(*columns)


def _scales(measured: Measured, base: Base) -> tuple[FieldScales, FieldScales, FieldScales]:
    points, sites = measured.points, Sites.of_points(measured.points)
    found = [
        fit_scales(sites, np.log(measured.latency_us / predicted), points.group, FieldScales())
        for predicted in (base.latency_us, base.analytic_us)
    ]
    at = np.flatnonzero(np.isfinite(measured.power_w) & np.isfinite(base.power_w))
    start = FieldScales(noise_std=0.05)
    residual = np.log(measured.power_w[at] / base.power_w[at])
    return found[0], found[1], fit_scales(sites.take(at), residual, points.group[at], start)


def _chosen(model: GroupedModel, measured: Measured, base: Base) -> GroupedFit:
    """Choose how to predict new shapes and known groups, and calibrate the intervals of that."""
    log_us = np.log(measured.latency_us)
    new = {
        "analytic": log_us - np.log(base.analytic_us),
        "analytic x trees": log_us - np.log(base.latency_us),
    }
    crossed = len(model.parts) > 1
    use_trees = not crossed or _mape(new["analytic x trees"]) <= _mape(new["analytic"])
    tried = {
        pair: _left_out_in_groups(dataclasses.replace(model, fields=pair), measured)
        for pair in _PAIRS
    }
    best = min(tried, key=lambda pair: _mape(tried[pair].latency_error))
    model = dataclasses.replace(model, use_trees=use_trees, fields=best)
    every = [tried[best]]
    if crossed:
        every.append(_as_new_groups(model, measured, base))
    known = tuple(np.concatenate([getattr(each, f.name) for each in every]) for f in _leaves())
    all_of = _LeftOut(*known)
    energy = np.isfinite(all_of.energy_error)
    names = ("trees + field", "analytic + field", "both fields")
    return GroupedFit(
        dataclasses.replace(
            model,
            latency_intervals=Calibration.of_scores(
                np.abs(all_of.latency_error) / all_of.latency_std, all_of.bins
            ),
            energy_intervals=Calibration.of_scores(
                np.abs(all_of.energy_error[energy]) / all_of.energy_std[energy],
                all_of.bins[energy],
            ),
        ),
        {
            **({name: _figures(errors) for name, errors in new.items()} if crossed else {}),
            **{
                name: _figures(tried[pair].latency_error)
                for name, pair in zip(names, _PAIRS, strict=True)
            },
            "chosen for new shapes": {"analytic x trees" if use_trees else "analytic": 1.0},
            "chosen for known groups": {names[_PAIRS.index(best)]: 1.0},
        },
    )


def _leaves() -> tuple[dataclasses.Field[object], ...]:
    return dataclasses.fields(_LeftOut)


def _left_out_in_groups(model: GroupedModel, measured: Measured) -> _LeftOut:
    """Leave out, group by group: one token count, one curve, and nine tenths of the layers."""
    rng = np.random.default_rng(0)
    found = []
    for name in np.unique(measured.points.group):
        at = np.flatnonzero(measured.points.group == name)
        if len(at) < 4:
            continue
        if len(at) > _LARGEST_GROUP:
            at = np.sort(rng.choice(at, _LARGEST_GROUP, replace=False))
        own = _subset(measured, at)
        fields = GroupFields.of(model, own)
        base = model.base(own.points, fields.fold)
        tokens = np.unique(own.points.tokens, return_inverse=True)[1]
        curves = np.unique(own.points.curve, return_inverse=True)[1]
        found += [_one_scheme(model, own, fields, base, parts) for parts in (tokens, curves)]
        kept = rng.random(len(at)) < _SPARSE
        if kept.sum() >= 2 and not kept.all():
            thin = GroupFields.of(model, _subset(own, np.flatnonzero(kept)))
            rest = _subset(own, np.flatnonzero(~kept))
            found.append(_judged(model, rest, *thin.predict(rest.points), known=True))
    if not found:
        empty = np.empty(0)
        return _LeftOut(empty, empty, empty, empty, np.empty(0, dtype=np.int64))
    return _LeftOut(*(np.concatenate([getattr(f, x.name) for f in found]) for x in _leaves()))


def _one_scheme(
    model: GroupedModel,
    own: Measured,
    fields: GroupFields,
    base: Base,
    parts: npt.NDArray[np.int64],
) -> _LeftOut:
    (weight, other), (learned, _, powers) = model.fields, model.scales
    first, first_variance = fields.learned.left_out(parts)
    second, second_variance = fields.analytic.left_out(parts)
    log_us = weight * (np.log(base.latency_us) + first) + other * (
        np.log(base.analytic_us) + second
    )
    variance = weight * first_variance + other * second_variance
    noise = learned.noise_variance(own.points.load.spread)
    novelty = np.clip((first_variance - noise) / learned.prior_variance(), 0.0, 1.0)
    log_w = np.log(base.power_w)
    power_variance = np.full(len(log_w), powers.prior_variance() + powers.noise_std**2)
    if fields.power is not None:
        trusted = np.flatnonzero(np.isfinite(own.power_w) & np.isfinite(base.power_w))
        shift, power_variance[trusted] = fields.power.left_out(parts[trusted])
        log_w[trusted] = np.minimum(log_w[trusted] + shift, np.log(model.limit_w))
    return _judged(model, own, log_us, variance, log_w, power_variance, novelty, known=True)


def _as_new_groups(model: GroupedModel, measured: Measured, base: Base) -> _LeftOut:
    learned, _, powers = model.scales
    size = len(measured.points)
    noise = learned.noise_variance(measured.points.load.spread)
    return _judged(
        model,
        measured,
        np.log(base.latency_us if model.use_trees else base.analytic_us),
        learned.prior_variance() + noise,
        np.log(base.power_w),
        np.full(size, powers.prior_variance() + powers.noise_std**2),
        np.ones(size),
        known=False,
    )


def _judged(
    model: GroupedModel,
    truth: Measured,
    log_us: Array,
    variance: Array,
    log_w: Array,
    power_variance: Array,
    novelty: Array,
    *,
    known: bool,
) -> _LeftOut:
    latency_error = np.log(truth.latency_us) - log_us
    return _LeftOut(
        latency_error=latency_error,
        latency_std=np.sqrt(variance),
        energy_error=latency_error + np.log(truth.power_w) - log_w,
        energy_std=np.sqrt(variance + power_variance),
        bins=doubt_bins(novelty, np.full(len(log_us), known), truth.points.tokens),
    )


def _subset(measured: Measured, at: npt.NDArray[np.int64]) -> Measured:
    return Measured(measured.points.take(at), measured.latency_us[at], measured.power_w[at])


def _mape(log_error: Array) -> float:
    return float(np.abs(np.expm1(-log_error)).mean()) if len(log_error) else np.inf


def _figures(log_error: Array) -> dict[str, float]:
    error = 100.0 * np.abs(np.expm1(-log_error))
    if not len(error):
        return {"layers": 0.0}
    return {
        "mape": float(error.mean()),
        "median": float(np.median(error)),
        "p90": float(np.quantile(error, 0.9)),
        "layers": float(len(error)),
    }
