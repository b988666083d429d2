"""Layers by the column names of public measurements: those of aiconfigurator's Parquet files."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from costprof.core.errors import InputError
from costprof.costmodel.devices import known_spec_name
from costprof.costmodel.grouped.points import LayerPoints
from costprof.costmodel.grouped.price import LayerPrices
from costprof.profiler.aiconfigurator import LARGEST_SIZE, QUANTISATIONS, SEPARATOR

_TEXTS = ("framework", "version", "kernel_source", "moe_dtype", "distribution")
_SIZES = (
    *("num_tokens", "hidden_size", "inter_size", "topk", "num_experts"),
    *("moe_tp_size", "moe_ep_size"),
)
COLUMNS = (*_TEXTS, *_SIZES)
"""Columns that say which layer to price."""

ADDED = (
    *("latency_ms", "latency_ms_p05", "latency_ms_p95"),
    *("energy_mj", "energy_mj_p05", "energy_mj_p95", "power_w", "tier"),
)
"""Columns that hold its price; milliseconds, because the public format has them."""


def public_points(table: pa.Table) -> LayerPoints:
    """Return the layers that the rows of `table` name, one a row.

    Raises:
        InputError: a column is missing, a size is no positive whole number or above
            `LARGEST_SIZE`, a name holds `SEPARATOR`, a row is of another op, or a layer cannot be
            dealt to its ranks.
    """
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise _refused(f"there is no column {', '.join(missing)}")
    sizes = {name: _size(table, name) for name in _SIZES}
    texts = {name: _text(table, name) for name in _TEXTS}
    for whole, ranks in (("inter_size", "moe_tp_size"), ("num_experts", "moe_ep_size")):
        odd = np.flatnonzero(sizes[whole] % sizes[ranks])
        if len(odd):
            raise _refused(
                f"row {odd[0]}: {whole} {sizes[whole][odd[0]]:.0f} is no multiple of "
                f"{ranks} {sizes[ranks][odd[0]]:.0f}"
            )
    many = np.flatnonzero(sizes["topk"] > sizes["num_experts"])
    if len(many):
        raise _refused(f"row {many[0]}: topk is larger than num_experts")
    if "op_name" in table.column_names:
        others = np.flatnonzero([name != "moe" for name in _text(table, "op_name")])
        if len(others):
            raise _refused(
                f"row {others[0]}: op_name is {table['op_name'][int(others[0])]}, not moe"
            )
    columns: dict[str, Any] = {
        "framework": [
            f"{name.lower()} {version}"
            for name, version in zip(texts["framework"], texts["version"], strict=True)
        ],
        "kernel": _kernels(texts),
        "precision": [_precision(name) for name in texts["moe_dtype"]],
        "hidden": sizes["hidden_size"],
        "inner": sizes["inter_size"] / sizes["moe_tp_size"],
        "top_k": sizes["topk"],
        "experts": sizes["num_experts"],
        "ep_size": sizes["moe_ep_size"],
        "tp_size": sizes["moe_tp_size"],
        "tokens": sizes["num_tokens"],
        "distribution": texts["distribution"],
    }
    return LayerPoints.of_columns(columns)


def rows_of_others(table: pa.Table, device: str) -> npt.NDArray[np.bool_]:
    """Return which rows name another GPU than `device` in their column `device`, if any: [n]."""
    if "device" not in table.column_names:
        return np.zeros(table.num_rows, dtype=bool)
    names = _text(table, "device")
    spec = known_spec_name(device)
    alike = {
        name: name == device or (spec is not None and known_spec_name(name) == spec)
        for name in set(names)
    }
    return np.array([not alike[name] for name in names], dtype=bool)


def doubts(table: pa.Table, device: str) -> list[str]:
    """Return what makes prices of `table`'s rows by a table of `device` doubtful, a line each."""
    others = rows_of_others(table, device)
    found = []
    if others.any():
        names = sorted({table["device"][int(at)].as_py() for at in np.flatnonzero(others)})
        found.append(f"{others.sum()} rows name {', '.join(names)}: priced as on {device}")
    types = Counter(_text(table, "moe_dtype"))
    found += [
        f"{count} rows are of moe_dtype {name}, which is not known: priced as weights of 2 bytes"
        for name, count in sorted(types.items())
        if name not in QUANTISATIONS
    ]
    return found


def with_prices(table: pa.Table, prices: LayerPrices) -> pa.Table:
    """Return `table` with the columns `ADDED`, row for row.

    Raises:
        InputError: it has one of them already.
    """
    taken = [name for name in ADDED if name in table.column_names]
    if taken:
        raise _refused(f"there is a column {taken[0]} already")
    found = prices.prediction
    low, median, high = found.latency_us
    columns = (
        *(values * 1e-3 for values in (median, low, high)),
        *(found.energy_mj[at] for at in (1, 0, 2)),
        found.power_w,
        prices.tier,
    )
    for name, values in zip(ADDED, columns, strict=True):
        unknown = None if name == "tier" else ~np.isfinite(values)
        table = table.append_column(name, pa.array(values, mask=unknown))
    return table


def _kernels(texts: dict[str, list[str]]) -> list[str]:
    """Name kernels as the dataset does: framework and kernel source."""
    pairs = zip(texts["framework"], texts["kernel_source"], strict=True)
    return [f"{framework.lower()}:{source}" for framework, source in pairs]


def _precision(moe_dtype: str) -> str:
    quantisation = QUANTISATIONS.get(moe_dtype)
    return moe_dtype if quantisation in (None, "none") else str(quantisation)


def _size(table: pa.Table, name: str) -> Any:
    try:
        values = table[name].cast(pa.float64(), safe=False).to_numpy()
    except pa.ArrowException as error:
        raise _refused(f"column {name} holds no numbers") from error
    wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 1) & (values == np.rint(values))))
    if len(wrong):
        raise _refused(f"row {wrong[0]}: {name} is {values[wrong[0]]:g}, no positive whole number")
    large = np.flatnonzero(values > LARGEST_SIZE[name])
    if len(large):
        raise _refused(
            f"row {large[0]}: {name} is {values[large[0]]:.15g}, above {LARGEST_SIZE[name]}"
        )
    return values


def _text(table: pa.Table, name: str) -> list[str]:
    values = table[name].to_pylist()
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) < len(values):
        raise _refused(f"column {name} holds something other than text")
    odd = next((row for row, text in enumerate(texts) if SEPARATOR in text), None)
    if odd is not None:
        raise _refused(f"row {odd}: {name} is {texts[odd]!r}, with a {SEPARATOR} in it")
    return texts


def _refused(fact: str) -> InputError:
    return InputError(
        f"the points cannot be read: {fact}",
        "nothing was priced",
        "give a Parquet file with the columns of public MoE measurements: " + ", ".join(COLUMNS),
    )
