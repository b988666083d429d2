"""Whole layers of public measurements: the held-out rows of an evaluation as calls.

The frame is that of `costprof.costmodel.evaluation.frame`: a row a held-out layer, measured and
predicted. Work is computed from shapes and from token counts drawn again for the named routing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from costprof.costmodel.evaluation.figures import figures_of
from costprof.costmodel.grouped.points import LayerPoints
from costprof.costmodel.grouped.work import layer_work, weight_bytes_each
from costprof.costmodel.report.calls import Array, Calls, Errors, HeldOut, Strings

_POINTS = (
    "framework",
    "kernel",
    "precision",
    "hidden",
    "inner",
    "top_k",
    "experts",
    "ep_size",
    "tp_size",
    "tokens",
    "distribution",
)
_ALIGNMENT = 256
_BASELINES = {
    "linear in tokens": "linear_us",
    "roofline x boosting": "boosting_us",
    "analytic alone": "analytic_us",
    "roofline alone": "roofline_us",
}


def layer_calls(frame: pa.Table) -> Calls:
    """Return the layers of `frame`, whose column names are those of the evaluation."""
    points = LayerPoints.of_columns({name: frame[name].to_pylist() for name in _POINTS})
    several = len(np.unique(points.method)) > len(np.unique(points.precision))
    whole = points.inner * points.tp_size
    shape = _joined("{}×{}, top {} of {}", points.hidden, whole, points.top_k, points.experts)
    energy = _numbers(frame, "energy_mj")
    trusted = frame["energy_trusted"].fill_null(False).to_numpy()
    precision = points.precision
    method = [_short(*names) for names in zip(points.kernel, points.framework, strict=True)]
    return Calls(
        series=_texts(
            f"{kind}, {name}" if several else kind
            for kind, name in zip(precision, method, strict=True)
        ),
        precision=precision,
        shape=shape,
        choice=_texts(
            f"{kind}, TP {tp:.0f}, EP {ep:.0f}, {name}"
            for kind, tp, ep, name in zip(
                precision, points.tp_size, points.ep_size, method, strict=True
            )
        ),
        cell=shape,
        tokens=points.tokens,
        latency_us=_numbers(frame, "latency_us"),
        flops=_numbers(frame, "flops"),
        bytes=_numbers(frame, "bytes"),
        energy_mj=np.where(trusted, energy, np.nan),
        power_w=np.where(trusted, _numbers(frame, "power_w"), np.nan),
        rise_c=np.full(len(points), np.nan),
        ranks=points.ep_size * points.tp_size,
        active=np.round(points.load.active),
        even=points.distribution == "balanced",
        features=_features(points, frame),
    )


def layers_held_out(frame: pa.Table) -> HeldOut:
    """Return how the layers of `frame` were predicted."""
    measured, predicted = _numbers(frame, "latency_us"), _numbers(frame, "latency_us_p50")
    low, high = _numbers(frame, "latency_us_p05"), _numbers(frame, "latency_us_p95")
    baselines = {name: _numbers(frame, column) for name, column in _BASELINES.items()}
    figures = figures_of(frame)
    chosen = figures.get("least_energy_choice")
    return HeldOut(
        how=_how(str(frame["split"][0].as_py())),
        series=_texts(frame["precision"].to_pylist()),
        tokens=_numbers(frame, "tokens"),
        measured_us=measured,
        predicted_us=predicted,
        half_width=np.log(high / low) / 2.0,
        baselines={name: each for name, each in baselines.items() if np.isfinite(each).any()},
        errors=[
            Errors(
                f"{quantity}, {subset}",
                method,
                values["layers"],
                values["mape"],
                values["median"],
                values["p90"],
                values.get("coverage_90"),
            )
            for quantity in ("latency", "energy")
            for subset, methods in figures.get(quantity, {}).items()
            for method, values in methods.items()
        ],
        energy_note=(
            "All methods of one line are judged on the rows that each of them can tell. Of energy, "
            "rows below 0.34 ms were sampled for too short a time to be trusted; capped rows drew "
            "95 % of the power limit or more."
        ),
        choices=chosen and (chosen["choices"], chosen["agreement"], chosen["mean_extra_energy"]),
    )


def _features(points: LayerPoints, frame: pa.Table) -> dict[str, Array]:
    """What is known of a layer before it runs; names as numbers."""
    load, work = points.load, layer_work(points)
    inner = points.inner.astype(np.int64)
    kernels = np.unique(points.method, return_inverse=True)[1].astype(np.float64)
    skew = [float(name.rpartition("_")[2]) if "_" in name else 0.0 for name in points.distribution]
    return {
        "tokens": points.tokens,
        "tokens × top-k on the rank": load.assignments,
        "tokens per active expert": load.assignments / np.maximum(load.active, 1e-9),
        "tokens of the busiest expert": load.busiest,
        "active experts": load.active,
        "hidden size": points.hidden,
        "inner size of the shard": points.inner,
        "alignment of the inner size": np.gcd(inner, _ALIGNMENT).astype(np.float64),
        "experts": points.experts,
        "top-k": points.top_k,
        "EP size": points.ep_size,
        "TP size": points.tp_size,
        "bits per weight": 8.0 * weight_bytes_each(points.precision),
        "skew of the routing": np.array(skew),
        "kernel and precision (by name)": kernels,
        "operations": _numbers(frame, "flops"),
        "bytes": _numbers(frame, "bytes"),
        "operations per byte": _numbers(frame, "flops") / _numbers(frame, "bytes"),
        "weight bytes": work.weight_bytes,
    }


def _how(split: str) -> str:
    name, _, value = split.partition(":")
    known = {
        "token": "token counts left out in turn",
        "shape": "whole model shapes left out",
        "sparse": f"all but a share {value} of the rows left out",
        "fewshot": f"whole model shapes left out but for {value} layers of each curve",
    }
    return known.get(name, f"split {split}")


def _numbers(frame: pa.Table, name: str) -> Array:
    return np.asarray(frame[name].cast(pa.float64()).to_numpy(), dtype=np.float64)


def _short(kernel: str, framework: str) -> str:
    """A kernel is called by its framework, whose version matters too."""
    return f"{framework} {kernel.removeprefix(framework.partition(' ')[0] + ':')}"


def _joined(style: str, *columns: Array) -> Strings:
    numbers = (column.astype(np.int64).tolist() for column in columns)
    return _texts(style.format(*each) for each in zip(*numbers, strict=True))


def _texts(values: Any) -> Strings:
    return np.array(list(values), dtype=str)
