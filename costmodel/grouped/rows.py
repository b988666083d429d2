"""Measured layers as rows of a cost table, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from costprof.costmodel.devices import DeviceSpec
from costprof.costmodel.grouped.dataset import layer_points
from costprof.costmodel.grouped.intervals import Z90
from costprof.costmodel.grouped.model import GroupedModel, Measured
from costprof.costmodel.grouped.points import LayerPoints
from costprof.costmodel.grouped.price import LayerPrices
from costprof.costmodel.grouped.work import layer_work
from costprof.costmodel.rows import TABLE_SCHEMA

Array = npt.NDArray[np.float64]

_SAME = (
    *("class_id", "block", "d_model", "d_ff", "activation", "dtype", "quantisation"),
    *("n_heads", "n_kv_heads", "head_dim", "context_len", "op", "kernel", "kernel_source_hash"),
    *("framework", "cache_state", "config", "experts", "top_k", "ep_size", "tp_size"),
    "distribution",
)


def measured_rows(
    rows: pa.Table, measured: Measured, model: GroupedModel, spec: DeviceSpec
) -> pa.Table:
    """Return the `named_layers` `rows` of a dataset as rows of a cost table, tier `measured`.

    The interval is that of one reading: the noise the model found, drawn routings included. Active
    energy is what the call adds to the idle power of the `spec`, as nobody measured that beside it.
    """
    noise = model.scales[0].noise_variance(measured.points.load.spread)
    half = np.exp(Z90 * np.sqrt(noise))
    latency_us, power_w = measured.latency_us, measured.power_w
    active_mj = np.maximum(power_w - spec.idle_w, 0.0) * latency_us * 1e-3
    priced = {
        **_quantiles("latency_us", (latency_us / half, latency_us, latency_us * half)),
        **_quantiles("energy_mj", (active_mj / half, active_mj, active_mj * half)),
        "power_w": _known(power_w),
        "tier": pa.array(["measured"] * rows.num_rows),
        "energy_source": rows["energy_source"].fill_null("modelled").combine_chunks(),
    }
    return _table_rows(rows, measured.points, priced)


def priced_rows(
    rows: pa.Table, points: LayerPoints, prices: LayerPrices, spec: DeviceSpec
) -> pa.Table:
    """Return `rows` of a dataset with `prices` on a device of `spec` as rows of a cost table.

    `points` are the layers that `rows` name. Active energy is that beyond the idle power, its
    interval as wide as that of all energy.
    """
    found = prices.prediction
    low, median, high = found.energy_mj
    active_mj = np.maximum(found.power_w - spec.idle_w, 0.0) * found.latency_us[1] * 1e-3
    priced = {
        **_quantiles("latency_us", found.latency_us),
        **_quantiles("energy_mj", (active_mj * low / median, active_mj, active_mj * high / median)),
        "power_w": _known(found.power_w),
        "tier": pa.array(prices.tier.tolist()),
        "energy_source": pa.array(["modelled"] * rows.num_rows),
    }
    return _table_rows(rows, points, priced)


def _table_rows(rows: pa.Table, points: LayerPoints, priced: dict[str, Any]) -> pa.Table:
    work = layer_work(points)
    columns: dict[str, Any] = {name: rows[name].combine_chunks() for name in _SAME}
    columns |= {
        **priced,
        "tokens": rows["batch_tokens"].combine_chunks(),
        "power_peak_w": pa.nulls(rows.num_rows, pa.float64()),
        "temp_rise_c": pa.nulls(rows.num_rows, pa.float64()),
        "bytes": work.weight_bytes + work.up.row_bytes + work.down.row_bytes,
        "flops": work.useful_flops,
        "counters": pa.array([[]] * rows.num_rows, TABLE_SCHEMA.field("counters").type),
    }
    return pa.table([columns[name] for name in TABLE_SCHEMA.names], schema=TABLE_SCHEMA)


def _quantiles(name: str, values: tuple[Array, Array, Array]) -> dict[str, pa.Array]:
    at = ("p05", "p50", "p95")
    return {f"{name}_{each}": _known(part) for each, part in zip(at, values, strict=True)}


def measured_of_table(rows: pa.Table) -> Measured | None:
    """Return the measured layers among the `rows` of a table, or None where there are none."""
    rows = rows.filter(pc.and_(pc.equal(rows["op"], "layer"), pc.equal(rows["tier"], "measured")))
    if rows.num_rows == 0:
        return None
    power_w = rows["power_w"].fill_null(float("nan")).to_numpy()
    return Measured(layer_points(rows, tokens="tokens"), rows["latency_us_p50"].to_numpy(), power_w)


def _known(values: Array) -> pa.Array:
    return pa.array(values, mask=~np.isfinite(values))
