"""The rows of a dataset as curves over tokens, one a (class, tile config)."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from costprof.core.expert import ExpertClass, Kernel
from costprof.costmodel.features import Array, Subject
from costprof.costmodel.rows import CLASS_FIELDS

ENERGY_SOURCES = (
    "nvml_counter",
    "nvml_integral",
    "external_meter",
    "power_samples",
    "modelled",
)
"""Best first: a curve's energy is read from its points of the best source it has."""

# Medians of one clock tick apart, or of two runs minutes apart, differ by about this much.
_FLOOR_STD = 0.005
_NOISY_STD = 0.10
# Robust CV is IQR / median; a normal IQR is 1.35 sigma, a median's error 1.25 sigma / sqrt(n).
_MEDIAN_ERROR_PER_CV = 1.25 / 1.35


@dataclass(frozen=True, kw_only=True)
class MeasuredCurve(Subject):
    """What was measured of one class under one config, ascending in tokens.

    All arrays are [points]. `p05`, `p50`, `p95` are latencies in µs; `variance` is that of
    log p50, from the repeats and the quality gate; `rows` are the dataset's own, for the rest.
    """

    tokens: Array
    p05: Array
    p50: Array
    p95: Array
    variance: Array
    rows: tuple[Mapping[str, Any], ...]

    @cached_property
    def measured_work(self) -> tuple[Array, Array]:
        """Operations and bytes at the measured tokens."""
        return self.work(self.tokens)

    def without(self, point: int) -> MeasuredCurve:
        """Return the curve less one point."""
        keep = np.arange(len(self.tokens)) != point
        arrays = ("tokens", "p05", "p50", "p95", "variance")
        return dataclasses.replace(
            self,
            **{name: getattr(self, name)[keep] for name in arrays},
            rows=tuple(row for row, kept in zip(self.rows, keep, strict=True) if kept),
        )


def is_usable(row: Mapping[str, Any]) -> bool:
    """Return whether a row of a dataset holds a measurement that can be fitted.

    It did not fail, its quantiles are finite, positive and in order, it says of how many tokens
    (a layer: of which counts) and its config can be read.
    """
    if row["status"] == "failed" or (row["tokens"] or 0) < 1:
        return False
    if row["op"] == "layer" and not row["counts"]:
        return False
    low, median, high = (row[f"latency_us_{name}"] for name in ("p05", "p50", "p95"))
    if low is None or median is None or high is None:
        return False
    return 0.0 < low <= median <= high < math.inf and _is_object(row["config"])


def measured_curves(rows: list[dict[str, Any]]) -> list[MeasuredCurve]:
    """Group usable rows (neither failed nor of a layer) into curves, in a fixed order.

    Of rows that measured the same thing twice the least doubtful stays.
    """
    grouped: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for row in rows:
        points = grouped.setdefault((row["class_id"], row["config"]), {})
        known = points.get(row["tokens"])
        if known is None or log_variance(row) < log_variance(known):
            points[row["tokens"]] = row
    return [_curve([points[t] for t in sorted(points)]) for _, points in sorted(grouped.items())]


def log_variance(row: Mapping[str, Any]) -> float:
    """Return the variance of log p50: spread of the calls, passes that disagree, a failed gate."""
    calls = _MEDIAN_ERROR_PER_CV * (row["robust_cv"] or 0.0) / max(row["n"] or 1, 1) ** 0.5
    passes = (row["pass_disagreement"] or 0.0) / 2
    gate = _NOISY_STD if row["status"] == "noisy" else 0.0
    return float(_FLOOR_STD**2 + calls**2 + passes**2 + gate**2)


def expert_of(row: Mapping[str, Any]) -> ExpertClass:
    """Return the expert class a row measured."""
    return ExpertClass(**{name: row[name] for name in CLASS_FIELDS})


def _is_object(text: str | None) -> bool:
    try:
        return isinstance(json.loads(text or ""), dict)
    except ValueError:
        return False


def _curve(rows: list[dict[str, Any]]) -> MeasuredCurve:
    first = rows[0]

    def column(name: str) -> Array:
        return np.array([row[name] for row in rows], dtype=np.float64)

    return MeasuredCurve(
        expert=expert_of(first),
        op=first["op"],
        kernel=Kernel(
            name=first["kernel"],
            source_hash=first["kernel_source_hash"],
            framework=first["framework"],
            config=json.loads(first["config"]),
        ),
        cache_state=first["cache_state"],
        tokens=column("tokens"),
        p05=column("latency_us_p05"),
        p50=column("latency_us_p50"),
        p95=column("latency_us_p95"),
        variance=np.array([log_variance(row) for row in rows]),
        rows=tuple(rows),
    )
