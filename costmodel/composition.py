"""How the experts of a layer add up, from measured layers.

Non-negative least squares on relative error, two numbers a class: what the layer costs by itself
(sorting, gathering, launching) and how an expert inside it compares with one on its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.optimize import nnls

from costprof.costmodel.curves import ClassCurves, read_classes
from costprof.costmodel.features import Array
from costprof.costmodel.manifest import Composition
from costprof.costmodel.measurements import expert_of, log_variance
from costprof.costmodel.tiled_layers import fastest_configs
from costprof.costmodel.validation import error_figures

MIN_LAYERS = 3
"""Layer rows a class needs for its two numbers and a left-out check of them."""

_OUTLIER_STD = 0.1


def fit_compositions(
    rows: pa.Table, layers: list[dict[str, Any]]
) -> tuple[dict[str, Composition], dict[str, Any]]:
    """Fit every expert class of table `rows` that `layers` (measurement rows) were made of.

    Only layers measured in the class's own cache state count: cold ones say nothing of warm
    experts. Of several layer kernels the one measured most often is used, and of several tile
    configs the fastest for the same counts. Returns the compositions and, by class id, the errors
    of leaving one layer out beside those of plainly adding the experts up. Energies are compared
    with those of the experts only where both have one source: measured ones say nothing about a
    model's.
    """
    experts = rows.filter(pc.equal(rows["op"], "expert"))
    if experts.num_rows == 0:
        return {}, {}
    class_ids = sorted(set(experts["class_id"].to_pylist()))
    states = dict(
        zip(experts["class_id"].to_pylist(), experts["cache_state"].to_pylist(), strict=True)
    )
    compositions: dict[str, Composition] = {}
    figures: dict[str, Any] = {}
    for class_id, curves in read_classes(experts, tuple(class_ids)).items():
        chosen = _layers_of(curves, states[class_id], layers)
        if len(chosen) >= MIN_LAYERS:
            compositions[class_id], figures[class_id] = _fit(curves, chosen)
    return compositions, figures


def _layers_of(
    curves: ClassCurves, cache_state: str, layers: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    alike = [
        row
        for row in layers
        if row["cache_state"] == cache_state and expert_of(row) == curves.expert
    ]
    names = [row["kernel"] for row in alike]
    most = max(sorted(set(names)), key=names.count, default="")
    return fastest_configs([row for row in alike if row["kernel"] == most])


def _fit(curves: ClassCurves, layers: list[dict[str, Any]]) -> tuple[Composition, dict[str, Any]]:
    dense = curves.dense(max(max(row["counts"]) for row in layers))
    sums = np.stack([dense[np.asarray(row["counts"])].sum(axis=0) for row in layers])  # [n, 2]
    weight = np.array([(1.0 + log_variance(row) / _OUTLIER_STD**2) ** -0.5 for row in layers])
    latency = np.array([row["latency_us_p50"] for row in layers])
    base_us, latency_scale = _solve(sums[:, 0], latency, weight)
    latency_errors = _check(sums[:, 0], latency, weight)
    sources = sorted({source for curve in curves.curves for source in curve.energy_source})
    source = sources[0] if len(sources) == 1 else "mixed"
    energy = np.array([_energy(row, source) for row in layers])
    known = np.isfinite(energy)
    base_mj, energy_scale, energy_errors = 0.0, 1.0, None
    if known.sum() >= MIN_LAYERS:
        base_mj, energy_scale = _solve(sums[known, 1], energy[known], weight[known])
        energy_errors = _check(sums[known, 1], energy[known], weight[known])
    composition = Composition(
        base_us=base_us,
        latency_scale=latency_scale,
        base_mj=base_mj,
        energy_scale=energy_scale,
        fitted=True,
        layers=len(layers),
        kernel=layers[0]["kernel"],
        latency_mape=latency_errors["model"]["mape"],
        energy_mape=None if energy_errors is None else energy_errors["model"]["mape"],
    )
    return composition, {
        "latency": latency_errors,
        "energy": energy_errors,
        "energy_source": source,
    }


def _check(sums: Array, measured: Array, weight: Array) -> dict[str, dict[str, float | int]]:
    return {
        "model": error_figures(predict_left_out(sums, measured, weight), measured),
        "sum_of_experts": error_figures(sums, measured),
    }


def predict_left_out(sums: Array, measured: Array, weight: Array) -> Array:
    """Predict each layer [n] from the other layers alone, given the sums of its experts [n]."""
    predicted = np.empty(len(sums))
    for left_out in range(len(sums)):
        rest = np.arange(len(sums)) != left_out
        base, scale = _solve(sums[rest], measured[rest], weight[rest])
        predicted[left_out] = base + scale * sums[left_out]
    return predicted


def _solve(sums: Array, measured: Array, weight: Array) -> tuple[float, float]:
    """Return base and scale ≥ 0 that minimise Σ (w · (base + scale · sum - y) / y)²."""
    design = np.stack([np.ones_like(sums), sums], axis=1) * (weight / measured)[:, None]
    (base, scale), _ = nnls(design, weight)
    return float(base), float(scale)


def _energy(row: Mapping[str, Any], source: str) -> float:
    """Energy of a layer, NaN where it is not of the `source` that prices the experts."""
    value = row["energy_active_mj"] if row["energy_source"] == source else None
    return float(value) if value is not None and value > 0 else float("nan")
