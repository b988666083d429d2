"""Fit the model of whole MoE layers: constants, trees across folds of shapes, fields, intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from costprof.costmodel.devices import DeviceSpec
from costprof.costmodel.grouped.features import power_features
from costprof.costmodel.grouped.field import FieldScales, Sites
from costprof.costmodel.grouped.fit_field import fit_scales
from costprof.costmodel.grouped.fit_stages import fit_stage_constants
from costprof.costmodel.grouped.fit_trees import fit_trees
from costprof.costmodel.grouped.intervals import Calibration
from costprof.costmodel.grouped.model import (
    WHOLE,
    Base,
    GroupedModel,
    Measured,
    Part,
    analytic_power_w,
    analytic_us,
    part_base,
)
from costprof.costmodel.grouped.points import LayerPoints
from costprof.costmodel.grouped.power import PowerConstants, fit_power_constants
from costprof.costmodel.grouped.stage_time import StageConstants
from costprof.costmodel.grouped.validate import chosen_model, token_set
from costprof.costmodel.grouped.work import LayerWork, layer_work, taken

Array = npt.NDArray[np.float64]
Progress = Callable[[str, int, int], None]

LEAST_LAYERS = 200
"""Layers from which this model is worth fitting."""

FOLDS = 5
_LEAST_OF_A_METHOD = 20
_LEAST_POWERS = 200
_POWER_NOISE = 0.01
"""The meter's errors drift from one reading to the next; what is left between neighbours is small,
and a field that took the drift for noise would smooth over what two neighbours agree on."""

_UNTRUSTED = 0.3  # weight of a power read over too short a window


@dataclass(frozen=True)
class GroupedFit:
    """The model, and the cross-validated figures it was chosen by, as plain JSON values.

    `figures` has the errors of each candidate in percent under `new_shapes` and `known_groups`,
    and under `chosen` the names of the two that are used.
    """

    model: GroupedModel
    figures: dict[str, Any]


def fit_grouped(
    measured: Measured, spec: DeviceSpec, progress: Progress | None = None
) -> GroupedFit:
    """Fit `measured` layers of a device of `spec`; the same layers give the same model."""
    tell = progress or (lambda stage, done, total: None)
    points, work = measured.points, layer_work(measured.points)
    fold_of_shape = _folds(points)
    fold = np.array([fold_of_shape[shape] for shape in points.shape.tolist()])
    start, start_power = StageConstants.of_spec(spec), PowerConstants.of_spec(spec)
    folds = sorted(set(fold.tolist())) if len(fold_of_shape) > 1 else []
    steps = 2 * len(folds) + 3
    held_tokens = token_set(points.tokens, max(len(folds), 1))

    def part(step: int, keep: npt.NDArray[np.bool_], power_of: Part | None = None) -> Part:
        tell("fitting layers", step, steps)
        at = np.flatnonzero(keep)
        kept, kept_work = measured.take(at), taken(work, at)
        return _fit_part(kept, kept_work, start, start_power, spec.power_limit_w, power_of)

    parts = {WHOLE: part(0, np.ones(len(points), dtype=bool))}
    if parts[WHOLE].powers:
        start_power = PowerConstants.typical(parts[WHOLE].powers.values())
    parts |= {name: part(1 + name, fold != name) for name in folds}
    without_tokens = {
        name: part(1 + len(folds) + name, (fold != name) & (held_tokens != name), parts[name])
        for name in folds
    }
    if not folds:
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
        power_between=0.0,
        scales=(FieldScales(), FieldScales(), FieldScales(noise_std=0.05)),
        latency_intervals=Calibration.of_scores(np.empty(0), np.empty(0, dtype=np.int64)),
        energy_intervals=Calibration.of_scores(np.empty(0), np.empty(0, dtype=np.int64)),
    )
    tell("fitting layers", steps - 2, steps)
    base = _crossed(model, points, work, fold)
    model = dataclasses.replace(model, scales=_scales(measured, base))
    tell("fitting layers", steps - 1, steps)
    return GroupedFit(*chosen_model(model, measured, base, without_tokens))


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
    kept: Measured,
    work: LayerWork,
    start: StageConstants,
    start_power: PowerConstants,
    limit_w: float,
    power_of: Part | None,
) -> Part:
    """Fit time and, unless it is taken from another part, power."""
    points, latency_us, power_w = kept.points, kept.latency_us, kept.power_w
    stages = {}
    for method, at in _methods(points):
        stages[method] = fit_stage_constants(taken(work, at), latency_us[at], start)
    analytic, features = analytic_us(stages, points, work, start)
    time = fit_trees(features, np.log(latency_us / analytic))
    if power_of is not None:
        return Part(stages, time, power_of.powers, power_of.power)
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
    weight = None
    if kept.power_trusted is not None:
        weight = np.where(kept.power_trusted[known], 1.0, _UNTRUSTED)
    ratio = fit_trees(x, np.log(power_w / first), loss="absolute_error", weight=weight)
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
    powers = fit_scales(sites.take(at), residual, points.group[at], start)
    powers = dataclasses.replace(powers, noise_std=min(powers.noise_std, _POWER_NOISE))
    return found[0], found[1], powers
