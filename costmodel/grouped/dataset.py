"""The whole layers of a dataset or a table, as the model of layers reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from costprof.costmodel.grouped.model import Measured
from costprof.costmodel.grouped.points import LayerPoints

_KNOWN_ROUTING = r"^(balanced|power_law_\d+(\.\d+)?)$"
_EXPONENT_1 = r"^power_law_0*1(\.0*)?$"
"""Which the inverse of the distribution does not have."""


def named_layers(rows: pa.Table) -> pa.Table:
    """Return those `rows` of the dataset that are usable layers of a named routing.

    Layers whose token counts are known row by row are composed of their experts instead.
    """
    return rows.filter(pc.and_(_measured(rows), _of_known_routing(rows)))


def unknown_routings(rows: pa.Table) -> dict[str, int]:
    """Return the routings of layers that were measured but cannot be dealt to experts, counted."""
    left = rows.filter(pc.and_(_measured(rows), pc.invert(_of_known_routing(rows))))
    counted = left["distribution"].fill_null("none").value_counts().to_pylist()
    return {each["values"]: each["counts"] for each in counted}


def failed_layers(rows: pa.Table) -> int:
    """Return how many layers have no usable latency."""
    failed = pc.and_(pc.equal(rows["op"], "layer"), pc.invert(_usable(rows)))
    return int(pc.sum(failed).as_py() or 0)


def _measured(rows: pa.Table) -> Any:
    """Which rows are usable layers whose token counts are not known row by row: [n] bool."""
    of_layers = pc.and_(pc.equal(rows["op"], "layer"), pc.is_null(rows["counts"]))
    return pc.and_(of_layers, _usable(rows))


def _usable(rows: pa.Table) -> Any:
    positive = pc.fill_null(pc.greater(rows["latency_us_p50"], 0.0), False)
    return pc.and_(pc.not_equal(rows["status"], "failed"), positive)


def _of_known_routing(rows: pa.Table) -> Any:
    known = pc.match_substring_regex(rows["distribution"], _KNOWN_ROUTING)
    odd = pc.match_substring_regex(rows["distribution"], _EXPONENT_1)
    return pc.fill_null(pc.and_(known, pc.invert(odd)), False)


def measured_layers(rows: pa.Table) -> Measured:
    """Return `named_layers` of the dataset as measured."""
    latency_us = _numbers(rows["latency_us_p50"])
    energy_mj = _numbers(rows["energy_mj"])
    return Measured(
        points=layer_points(rows, tokens="batch_tokens"),
        latency_us=latency_us,
        power_w=np.where(energy_mj > 0.0, energy_mj / latency_us * 1e3, np.nan),
        power_trusted=rows["energy_trusted"].fill_null(False).to_numpy(),
    )


def layer_points(rows: pa.Table, *, tokens: str) -> LayerPoints:
    """Return the layers that `rows` of a dataset or a table name.

    `tokens` is the column that holds the batch over all ranks.
    """
    quantised = pc.not_equal(rows["quantisation"], "none")
    ranks = _numbers(rows["ep_size"])
    columns: dict[str, Any] = {
        "framework": rows["framework"].to_pylist(),
        "kernel": rows["kernel"].to_pylist(),
        "precision": pc.if_else(quantised, rows["quantisation"], rows["dtype"]).to_pylist(),
        "hidden": _numbers(rows["d_model"]),
        "inner": _numbers(rows["d_ff"]),
        "top_k": _numbers(rows["top_k"]),
        "experts": _numbers(rows["experts"]) * ranks,
        "ep_size": ranks,
        "tp_size": _numbers(rows["tp_size"]),
        "tokens": _numbers(rows[tokens]),
        "distribution": rows["distribution"].to_pylist(),
    }
    return LayerPoints.of_columns(columns)


def _numbers(column: pa.ChunkedArray) -> Any:
    return column.cast(pa.float64()).to_numpy()
