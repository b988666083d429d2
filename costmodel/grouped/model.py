"""The model of whole MoE layers: analytic time and power, learned ratios, a group's own residuals.

    latency = analytic(layer) · exp(trees(layer)) · exp(field(layer))
    power   = analytic(layer, latency) · exp(trees) · exp(field)          energy = power · latency

The trees know layers of other shapes; a field knows the measurements of the layer's own group. The
trees under a field have not seen its shape (cross-fitting: the shapes are dealt into folds, each
has trees fitted without it), so that what the field is told is what they err by on new shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from costprof.costmodel.grouped.curves import between_counts
from costprof.costmodel.grouped.features import TIME_FEATURES, power_features, time_features
from costprof.costmodel.grouped.field import Field, FieldScales, Sites
from costprof.costmodel.grouped.intervals import Calibration, doubt_bins
from costprof.costmodel.grouped.points import LayerPoints
from costprof.costmodel.grouped.power import PowerConstants, layer_power_w
from costprof.costmodel.grouped.stage_time import StageConstants, stage_times
from costprof.costmodel.grouped.trees import Trees
from costprof.costmodel.grouped.work import LayerWork, layer_work, taken

Array = npt.NDArray[np.float64]

WHOLE = -1
"""The part fitted to all shapes, beside the folds 0, 1, ..."""

MOST_IN_A_FIELD = 1500
"""Measurements of a group a field takes: its cost is their number cubed."""


@dataclass(frozen=True)
class Part:
    """Constants by method, and trees, fitted to all shapes or to all but one fold's."""

    stages: dict[str, StageConstants]
    time: Trees
    powers: dict[str, PowerConstants]
    power: Trees | None


@dataclass(frozen=True)
class Measured:
    """Layers measured; all [n].

    `power_w` is NaN where it is not known; `power_trusted` is False where the window it was read
    over was too short, which counts less. None: all are trusted.
    """

    points: LayerPoints
    latency_us: Array
    power_w: Array
    power_trusted: npt.NDArray[np.bool_] | None = None

    def take(self, index: npt.NDArray[Any]) -> Measured:
        """Return the layers at `index` (positions or a mask)."""
        trusted = None if self.power_trusted is None else self.power_trusted[index]
        points = self.points.take(index)
        return Measured(points, self.latency_us[index], self.power_w[index], trusted)


@dataclass(frozen=True)
class Base:
    """What a part predicts without a group's measurements; all [n]."""

    analytic_us: Array
    latency_us: Array
    power_w: Array


@dataclass(frozen=True)
class LayerPrediction:
    """Prices of n layers; all [n]. Latency and energy are (p05, p50, p95); power a mean.

    `known_group` says whose group was measured; energies are NaN where the model knows no power.
    """

    latency_us: tuple[Array, Array, Array]
    energy_mj: tuple[Array, Array, Array]
    power_w: Array
    known_group: npt.NDArray[np.bool_]

    def take(self, index: npt.NDArray[Any]) -> LayerPrediction:
        """Return the layers at `index` (positions or a mask)."""
        latency, energy = self.latency_us, self.energy_mj
        return LayerPrediction(
            (latency[0][index], latency[1][index], latency[2][index]),
            (energy[0][index], energy[1][index], energy[2][index]),
            self.power_w[index],
            self.known_group[index],
        )


@dataclass(frozen=True)
class Centre:
    """Medians and doubt before calibration; all [n]. Variances are of the logarithm."""

    log_latency: Array
    latency_variance: Array
    log_power: Array
    power_variance: Array
    novelty: Array
    known_group: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class GroupedModel:
    """Everything that was fitted.

    Attributes:
        parts: By fold, and `WHOLE`.
        fold_of_shape: Fold of every shape fitted; a shape not in it is new to all parts.
        start, start_power: Constants of a method nobody measured.
        limit_w: Power limit.
        use_trees: Whether new shapes are better predicted with the trees.
        fields: Weights of the learned and of the analytic residual in a known group.
        power_between: Weight of the neighbours' power, beside the field's, between measured token
            counts of a curve.
        scales: Of the fields over the learned, the analytic and the power residual.
        latency_intervals, energy_intervals: Calibrations.
    """

    parts: Mapping[int, Part]
    fold_of_shape: Mapping[str, int]
    start: StageConstants
    start_power: PowerConstants
    limit_w: float
    use_trees: bool
    fields: tuple[float, float]
    power_between: float
    scales: tuple[FieldScales, FieldScales, FieldScales]
    latency_intervals: Calibration
    energy_intervals: Calibration

    def base(self, points: LayerPoints, fold: int = WHOLE) -> Base:
        """Return what the part of `fold` predicts of `points`."""
        work = layer_work(points)
        return part_base(self.parts[fold], points, work, self)

    def predict(self, points: LayerPoints, measured: Measured | None = None) -> LayerPrediction:
        """Price `points`, given what was `measured` of their groups."""
        centre = self.centre(points, measured)
        bins = doubt_bins(centre.novelty, centre.known_group, points.tokens)
        half = self.latency_intervals.half_width(np.sqrt(centre.latency_variance), bins)
        std = np.sqrt(centre.latency_variance + centre.power_variance)
        energy_half = self.energy_intervals.half_width(std, bins)
        log_energy = centre.log_latency + centre.log_power + np.log(1e-3)
        return LayerPrediction(
            latency_us=_around(centre.log_latency, half),
            energy_mj=_around(log_energy, energy_half),
            power_w=np.exp(centre.log_power),
            known_group=centre.known_group,
        )

    def centre(self, points: LayerPoints, measured: Measured | None = None) -> Centre:
        """Return medians and doubt of `points` before calibration."""
        base = self.base(points)
        first = base.latency_us if self.use_trees else base.analytic_us
        learned, _, powers = self.scales
        noise = learned.noise_variance(points.load.spread)
        log_latency = np.log(first)
        variance = learned.prior_variance() + noise
        log_power = np.log(base.power_w)
        power_variance = np.full(len(points), powers.prior_variance() + powers.noise_std**2)
        novelty = np.ones(len(points))
        known = np.zeros(len(points), dtype=bool)
        if measured is not None and len(measured.points):
            groups = measured.points.group
            for name in np.intersect1d(np.unique(points.group), np.unique(groups)):
                at, have = np.flatnonzero(points.group == name), np.flatnonzero(groups == name)
                own = GroupFields.of(self, _thinned(measured, have))
                found = own.predict(points.take(at))
                log_latency[at] = self._weighed(found.learned, found.analytic)
                variance[at] = self._weighed(found.learned_variance, found.analytic_variance)
                log_power[at] = found.power(self.power_between)
                power_variance[at] = found.power_variance
                novelty[at], known[at] = found.novelty, True
        return Centre(log_latency, variance, log_power, power_variance, novelty, known)

    def _weighed(self, learned: Array, analytic: Array) -> Array:
        return self.fields[0] * learned + self.fields[1] * analytic


@dataclass(frozen=True)
class GroupPrediction:
    """What the fields of a group say of n layers; logarithms and their variances, all [n].

    `between_power` is NaN where a layer does not lie between measured token counts of its curve.
    `novelty` is the share of the prior variance that its measurements leave.
    """

    learned: Array
    learned_variance: Array
    analytic: Array
    analytic_variance: Array
    log_power: Array
    between_power: Array
    power_variance: Array
    novelty: Array

    def power(self, weight: float) -> Array:
        """Return log power [n], the neighbours' weighing `weight` where there are two."""
        mixed = (1.0 - weight) * self.log_power + weight * self.between_power
        return np.where(np.isfinite(mixed), mixed, self.log_power)


@dataclass(frozen=True)
class GroupFields:
    """The fields of one group over what its fold's part leaves unexplained.

    `read` are the layers whose power is known.
    """

    model: GroupedModel
    fold: int
    learned: Field
    analytic: Field
    power: Field | None
    read: Measured

    @classmethod
    def of(cls, model: GroupedModel, measured: Measured) -> GroupFields:
        """Return the fields of the one group that `measured` holds."""
        points = measured.points
        fold = model.fold_of_shape.get(str(points.shape[0]), WHOLE)
        base, sites = model.base(points, fold), Sites.of_points(points)
        learned, analytic, powers = model.scales
        log_us = np.log(measured.latency_us)
        read = np.flatnonzero(np.isfinite(measured.power_w) & np.isfinite(base.power_w))
        power = None
        if len(read):
            residual = np.log(measured.power_w[read] / base.power_w[read])
            power = Field(sites.take(read), residual, powers)
        return cls(
            model,
            fold,
            Field(sites, log_us - np.log(base.latency_us), learned),
            Field(sites, log_us - np.log(base.analytic_us), analytic),
            power,
            measured.take(read),
        )

    def predict(self, points: LayerPoints) -> GroupPrediction:
        """Return what both fields say of `points`."""
        base, sites = self.model.base(points, self.fold), Sites.of_points(points)
        scales, _, powers = self.model.scales
        learned, learned_variance = self.learned.predict(sites)
        analytic, analytic_variance = self.analytic.predict(sites)
        left = learned_variance - scales.noise_variance(sites.spread)
        log_power = np.log(base.power_w)
        power_variance = np.full(len(points), powers.prior_variance() + powers.noise_std**2)
        if self.power is not None:
            shift, power_variance = self.power.predict(sites)
            log_power = np.minimum(log_power + shift, np.log(self.model.limit_w))
        return GroupPrediction(
            learned=np.log(base.latency_us) + learned,
            learned_variance=learned_variance,
            analytic=np.log(base.analytic_us) + analytic,
            analytic_variance=analytic_variance,
            log_power=log_power,
            between_power=between_counts(self.read.points, np.log(self.read.power_w), points),
            power_variance=power_variance,
            novelty=np.clip(left / scales.prior_variance(), 0.0, 1.0),
        )


def part_base(part: Part, points: LayerPoints, work: LayerWork, model: GroupedModel) -> Base:
    """Return what `part` predicts of `points`, whose work is `work`."""
    analytic, features = analytic_us(part.stages, points, work, model.start)
    latency = analytic * np.exp(part.time.predict(features))
    power = np.full(len(points), np.nan)
    if part.power is not None:
        first = analytic_power_w(
            part.powers, points, work, latency, model.start_power, model.limit_w
        )
        ratio = part.power.predict(power_features(features, work, latency))
        power = np.minimum(first * np.exp(ratio), model.limit_w)
    return Base(analytic, latency, power)


def analytic_us(
    stages: Mapping[str, StageConstants],
    points: LayerPoints,
    work: LayerWork,
    start: StageConstants,
) -> tuple[Array, Array]:
    """Return the analytic time [n] and the time features of `points`, by their methods."""
    total, features = np.empty(len(points)), np.empty((len(points), len(TIME_FEATURES)))
    for method in np.unique(points.method):
        at = np.flatnonzero(points.method == method)
        own, own_work = points.take(at), taken(work, at)
        times = stage_times(own_work, stages.get(str(method), start))
        total[at] = times.total_us
        features[at] = time_features(own, own_work, times)
    return total, features


def analytic_power_w(
    powers: Mapping[str, PowerConstants],
    points: LayerPoints,
    work: LayerWork,
    latency_us: Array,
    start: PowerConstants,
    limit_w: float,
) -> Array:
    """Return the analytic power [n] of `points` that take `latency_us` [n]."""
    power = np.empty(len(points))
    for method in np.unique(points.method):
        at = np.flatnonzero(points.method == method)
        constants = powers.get(str(method), start)
        power[at] = layer_power_w(taken(work, at), latency_us[at], constants, limit_w)
    return power


def _thinned(measured: Measured, at: npt.NDArray[np.int64]) -> Measured:
    if len(at) > MOST_IN_A_FIELD:
        at = np.sort(np.random.default_rng(0).choice(at, MOST_IN_A_FIELD, replace=False))
    return measured.take(at)


def _around(log_median: Array, half_width: Array) -> tuple[Array, Array, Array]:
    return (
        np.exp(log_median - half_width),
        np.exp(log_median),
        np.exp(log_median + half_width),
    )
