"""Columns that every frame of held-out layers has, whatever held them out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from costprof.costmodel.grouped.model import Measured
from costprof.costmodel.grouped.work import LayerWork

CAPPED = 0.95
"""Share of the power limit from which a reading counts as capped."""


def layer_columns(measured: Measured, work: LayerWork, power_limit_w: float) -> dict[str, Any]:
    """Return what `measured` layers are, took and drew; `work` is theirs."""
    points, trusted = measured.points, measured.power_trusted
    energy_mj = measured.power_w * measured.latency_us * 1e-3
    return {
        **{
            name: getattr(points, name)
            for name in ("framework", "kernel", "precision", "distribution", "shape", "curve")
        },
        **{
            name: getattr(points, name).astype(np.int64)
            for name in ("hidden", "inner", "top_k", "experts", "ep_size", "tp_size", "tokens")
        },
        "latency_us": measured.latency_us,
        "energy_mj": energy_mj,
        "energy_trusted": np.isfinite(energy_mj) if trusted is None else trusted,
        "constant_tdp_mj": power_limit_w * measured.latency_us * 1e-3,
        "power_w": measured.power_w,
        "power_limit_w": np.full(len(points), power_limit_w),
        "power_capped": measured.power_w >= CAPPED * power_limit_w,
        "flops": work.useful_flops,
        "bytes": work.weight_bytes + work.up.row_bytes + work.down.row_bytes,
    }


def quantile_columns(name: str, values: tuple[Any, Any, Any]) -> dict[str, Any]:
    """Return the 5th, 50th and 95th percentile of `name` as columns."""
    return {f"{name}_{at}": part for at, part in zip(("p05", "p50", "p95"), values, strict=True)}


def frame_of(columns: Mapping[str, Any]) -> pa.Table:
    """Return `columns` as a table; numbers that are not finite become NULL."""
    return pa.table({name: _column(values) for name, values in columns.items()})


def _column(values: Any) -> pa.Array:
    values = np.asarray(values)
    if values.dtype == np.float64:
        return pa.array(values, mask=~np.isfinite(values))
    return pa.array(values.tolist()) if values.dtype.kind == "U" else pa.array(values)
