"""How well latency is predicted where it was not measured: leave one token count out.

Every fold refits the ceilings and the residual without the left-out point, hyperparameters of its
own process included; the baselines see the same points. Points at the ends of a curve test
extrapolation and are reported apart from those inside. Two things have seen the left-out point:
the pooled hyperparameters a "single" fold is predicted with, and, by way of the ceilings, the
smoothness lent to a curve of few points, which widens its intervals but does not move its median.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from costprof.costmodel.devices import DeviceSpec
from costprof.costmodel.energy import known_energy, power_curve
from costprof.costmodel.features import Array
from costprof.costmodel.measurements import MeasuredCurve
from costprof.costmodel.predict import LatencyModel
from costprof.costmodel.residual import (
    MIN_OWN_POINTS,
    MIN_POINTS,
    borrow,
    fit_own,
    fit_pooled,
)
from costprof.costmodel.roofline import fit_roofline

Progress = Callable[[int, int], None]

Z90 = 1.6448536269514722
"""Half width of a normal 90 % interval, in standard deviations."""

KINDS = ("interior", "end", "few-inside", "few-end", "single")
"""What a left-out point is predicted from; see `Fold`."""

_MAX_FOLDS = 400
# Bounds of the calibration: a few odd folds must not make intervals meaningless either way.
_DOUBT = (0.5, 5.0)


@dataclass(frozen=True, slots=True)
class Fold:
    """One left-out point: what was measured there and what each method said, latencies in µs.

    `std` is the model's standard deviation of log latency. `kind` says what was left to predict
    from: a curve of five points or more around ("interior") or to one side ("end"), two to four
    points of it around ("few-inside") or to one side ("few-end"), one ("single").
    """

    curve: MeasuredCurve
    point: int
    kind: str
    measured: float
    model: float
    std: float
    roofline: float
    linear: float


def leave_one_out(
    curves: list[MeasuredCurve], fitted: LatencyModel, progress: Progress | None = None
) -> list[Fold]:
    """Predict every measured point without itself (an even sample of 400 where there are more)."""
    tasks = [
        (index, point)
        for index, curve in enumerate(curves)
        for point in range(len(curve.tokens))
        if len(curve.tokens) >= MIN_POINTS
    ]
    tasks = tasks[:: -(-len(tasks) // _MAX_FOLDS)] if tasks else []
    folds = []
    for done, (index, point) in enumerate(tasks):
        if progress is not None:
            progress(done, len(tasks))
        folds.append(_fold(curves, index, point, fitted))
    return folds


def _fold(curves: list[MeasuredCurve], index: int, point: int, fitted: LatencyModel) -> Fold:
    curve = curves[index]
    rest = curve.without(point)
    others = [*curves[:index], rest, *curves[index + 1 :]]
    roofline = fit_roofline(others)
    token = curve.tokens[point : point + 1]
    own, pooled, kind = {}, fitted.pooled, "single"
    at_end = point in (0, len(curve.tokens) - 1)
    if len(rest.tokens) >= MIN_OWN_POINTS:
        own[curve.key] = fit_own(rest, roofline)
        kind = "end" if at_end else "interior"
    elif len(rest.tokens) >= MIN_POINTS:
        lenders = [process for key, process in fitted.own.items() if key != curve.key]
        own[curve.key] = borrow(rest, roofline, lenders)
        kind = "few-end" if at_end else "few-inside"
    else:
        pooled = fit_pooled(others, roofline, like=fitted.pooled)
    latency, std = LatencyModel(roofline, pooled, own).predict(curve, token)
    return Fold(
        curve=curve,
        point=point,
        kind=kind,
        measured=float(curve.p50[point]),
        model=float(latency[0]),
        std=float(std[0]),
        roofline=float(roofline.latency_us(curve, *curve.work(token))[0]),
        linear=linear(rest.tokens, rest.p50, float(token[0])),
    )


def linear(tokens: Array, values: Array, at: float) -> float:
    """Interpolate `values` [n] linearly in tokens, beyond the ends along the nearest segment."""
    if len(tokens) == 1:
        return float(values[0])
    right = int(np.clip(np.searchsorted(tokens, at), 1, len(tokens) - 1))
    share = (at - tokens[right - 1]) / (tokens[right] - tokens[right - 1])
    return float(values[right - 1] + share * (values[right] - values[right - 1]))


def calibrated(model: LatencyModel, folds: list[Fold]) -> LatencyModel:
    """Return `model` with the doubt that makes 90 % of the left-out medians fall inside."""
    missed = {kind: _deviations(folds, kind) for kind in KINDS}
    inside, end = missed["few-inside"], missed["few-end"]
    # Where one kind is missing the other is a better guide than no calibration.
    few = doubt(inside if len(inside) else end)
    beyond = doubt(end if len(end) else inside)
    well = doubt(missed["interior"])
    single = max(doubt(missed["single"]), few, beyond)
    return dataclasses.replace(
        model,
        pooled=dataclasses.replace(model.pooled, doubt=single),
        own={
            key: dataclasses.replace(process, doubt=few, doubt_beyond=beyond)
            if process.straight
            else dataclasses.replace(process, doubt=well)
            for key, process in model.own.items()
        },
    )


def doubt(deviations: Array) -> float:
    """Return the factor on the std under which 90 % of |deviation| / std lie within `Z90`.

    The quantile is that of split conformal prediction (Lei et al., JASA 113(523), 2018), which
    allows for the number of points; where they are too few for it, the largest deviation counts.
    """
    if len(deviations) == 0:
        return 1.0
    rank = min(math.ceil(0.9 * (len(deviations) + 1)), len(deviations))
    factor = float(np.sort(np.abs(deviations))[rank - 1]) / Z90
    return float(np.clip(factor, *_DOUBT))


def _deviations(folds: list[Fold], kind: str) -> Array:
    """Return by how many standard deviations each left-out median of `kind` was missed."""
    missed = [
        math.log(fold.measured / fold.model) / fold.std for fold in folds if fold.kind == kind
    ]
    return np.array(missed)


def error_figures(predicted: Array, measured: Array) -> dict[str, float | int]:
    """Return count, MAPE, median and p90 of |predicted / measured - 1|, in percent."""
    error = 100.0 * np.abs(predicted / measured - 1.0)
    return {
        "points": len(error),
        "mape": round(float(error.mean()), 3),
        "median": round(float(np.median(error)), 3),
        "p90": round(float(np.quantile(error, 0.9)), 3),
    }


def latency_figures(folds: list[Fold]) -> dict[str, dict[str, dict[str, float | int]]]:
    """Return errors of the model and both baselines by kind of fold.

    The model's also hold `coverage_90`, the percentage of measured medians inside its 90 %
    interval (calibrated on the other left-out points of the kind), and `width_90`, the median
    width of that interval as a percentage of the prediction.
    """
    figures = {}
    for kind in KINDS:
        chosen = [fold for fold in folds if fold.kind == kind]
        if not chosen:
            continue
        measured = np.array([fold.measured for fold in chosen])
        model = np.array([fold.model for fold in chosen])
        half = half_widths(folds, kind)
        inside = np.abs(np.log(measured / model)) <= half
        width = np.exp(half) - np.exp(-half)
        figures[kind] = {
            "model": {
                **error_figures(model, measured),
                "coverage_90": round(100.0 * float(inside.mean()), 1),
                "width_90": round(100.0 * float(np.median(width)), 1),
            },
            "roofline": error_figures(np.array([f.roofline for f in chosen]), measured),
            "linear": error_figures(np.array([f.linear for f in chosen]), measured),
        }
    return figures


def half_widths(folds: list[Fold], kind: str) -> Array:
    """Return half the widths, in log latency, of the 90 % intervals of the folds of `kind`.

    Each is calibrated on the *other* left-out points of the kind; those at the ends of a curve on
    the points inside.
    """
    reference = _deviations(folds, "interior" if kind == "end" else kind)
    std = np.array([fold.std for fold in folds if fold.kind == kind])
    if kind == "end":
        return np.asarray(Z90 * std * doubt(reference))
    return np.asarray(Z90 * std * [doubt(np.delete(reference, i)) for i in range(len(reference))])


def energy_figures(folds: list[Fold], spec: DeviceSpec) -> dict[str, dict[str, Any]]:
    """Return errors of the energy at left-out points, by `energy_source`.

    The model multiplies interpolated power with *predicted* latency. Beside it: energy
    interpolated linearly in tokens, and the mean power of the curve times the *true* latency,
    which shows how much of a good figure is latency alone. Under `modelled` the figures compare
    with a power model, not with a meter.
    """
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    for fold in folds:
        source, points = known_energy(fold.curve)
        others = [point for point in points if point != fold.point]
        if source is None or fold.point not in points or not others:
            continue
        rest = fold.curve.without(fold.point)
        power = power_curve(rest, spec)
        tokens = fold.curve.tokens[fold.point : fold.point + 1]
        energy = np.array([fold.curve.rows[point]["energy_active_mj"] for point in others])
        found.setdefault(source, []).append(
            (
                float(fold.curve.rows[fold.point]["energy_active_mj"]),
                float(power.energy_mj(tokens, np.array([fold.model]))[0]),
                linear(fold.curve.tokens[others], energy, float(tokens[0])),
                float(power.watts.mean()) * fold.measured / 1e3,
            )
        )
    figures: dict[str, dict[str, Any]] = {}
    for name, values in sorted(found.items()):
        measured, model, straight, mean_power = np.array(values).T
        figures[name] = {
            "model": error_figures(model, measured),
            "linear": error_figures(straight, measured),
            "mean_power_true_latency": error_figures(mean_power, measured),
        }
    return figures
