"""Take public measurements of grouped MoE layers into a dataset: aiconfigurator's Parquet files.

ai-dynamo/aiconfigurator (Apache-2.0) publishes, for each GPU, serving framework and version, the
time of one call of the framework's own MoE layer, and of some its mean power. A row becomes one
layer row of `measurements/`; docs/dataset.md says what each column then means.

All is done by SQL over whole columns: Python sees the few distinct classes, never the rows.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from costprof.core.device import DeviceFingerprint
from costprof.core.errors import ExportError
from costprof.core.expert import INT4_GROUP_SIZE, ExpertClass, Kernel, Quantisation, class_id
from costprof.profiler.duck import connect, quoted_file, quoted_text
from costprof.profiler.schema import MEASUREMENTS

BACKEND = "aiconfigurator"

CALLS_OF_A_POWER_WINDOW = 3_000
"""How often the call was repeated while its power was sampled."""
TRUSTED_WINDOW_S = 1.0
"""A shorter window holds too few samples, some of them from before the GPU was busy."""

QUANTISATIONS: dict[str, Quantisation] = {
    "bfloat16": "none",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "int4_wo": "int4",
    "w4a16_mxfp4": "mxfp4",
}
"""Our name of the weights' format, by `moe_dtype`."""

_QUANTILES = ("mean", "p05", "p25", "p50", "p75", "p95")
_TEXTS = ("framework", "version", "device", "op_name", "kernel_source", "moe_dtype", "distribution")
_SIZES = (
    "num_tokens",
    "hidden_size",
    "inter_size",
    "topk",
    "num_experts",
    "moe_tp_size",
    "moe_ep_size",
)
LARGEST_SIZE: dict[str, int] = dict.fromkeys(_SIZES, 10**9) | {"num_experts": 65_536}
"""The most that a size may be: beyond, no layer is meant, and its tokens could not be dealt."""
SEPARATOR = "|"
"""What no name of a framework, version or kernel may hold: names are joined by it."""
_JOINED = ("framework", "version", "kernel_source")
_NUMBERS = (*_SIZES, "latency")
_OPTIONAL = ("power", "power_limit")

_NO_GROUPS = f"int4 weights have no whole groups of {INT4_GROUP_SIZE}"
_CONSEQUENCE = "nothing was ingested"
_WAY_OUT = "give a Parquet file of MoE layers as aiconfigurator publishes them"


@dataclass(frozen=True, slots=True)
class PublicLayers:
    """The layers of one file: `table` has the columns of `schema.MEASUREMENTS`, in a fixed order.

    `rows` are in the file. `skipped` counts those that cannot be used, by reason; `repeated` those
    that measured what another did: of these the median is kept.
    """

    table: pa.Table
    device: str
    rows: int
    repeated: int
    skipped: dict[str, int]


def read_layers(path: Path, *, run_id: str) -> PublicLayers:
    """Return the layers that the Parquet file `path` holds, with `run_id` in the column of it.

    Raises:
        ExportError: the file is damaged, lacks columns, is of another op or of several devices,
            or has no row that can be used.
    """
    source = path.name
    try:
        with connect() as connection:
            columns = _checked_columns(connection, path, source)
            _stage(connection, path, columns)
            rows, skipped, repeated = _checked_rows(connection, source)
            device = _one_device(connection, source)
            _name_classes(connection)
            _name_devices(connection)
            table = _measurements(connection, run_id)
    except duckdb.Error as error:
        raise ExportError(
            f"{source} cannot be read as Parquet ({str(error).splitlines()[0]})",
            _CONSEQUENCE,
            _WAY_OUT,
        ) from error
    return PublicLayers(table, device, rows, repeated, skipped)


def _checked_columns(
    connection: duckdb.DuckDBPyConnection, path: Path, source: str
) -> dict[str, str]:
    """Return the type of each column of the file, those that are needed being there."""
    described = connection.execute(f"DESCRIBE SELECT * FROM read_parquet({quoted_file(path)})")
    columns = {row[0]: row[1] for row in described.fetchall()}
    if "op_name" in columns:
        ops = connection.execute(
            f"SELECT DISTINCT op_name::VARCHAR FROM read_parquet({quoted_file(path)}) ORDER BY ALL"
        ).fetchall()
        names = [str(op) for (op,) in ops]
        if names and "moe" not in names:
            raise ExportError(
                f"{source} holds measurements of {', '.join(names[:5])}, not of MoE layers",
                _CONSEQUENCE,
                "give a file whose op_name is moe",
            )
    missing = [name for name in (*_TEXTS, *_NUMBERS) if name not in columns]
    if missing:
        raise ExportError(
            f"{source} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}",
            _CONSEQUENCE,
            _WAY_OUT,
        )
    for name in (*_NUMBERS, *_OPTIONAL):
        if name in columns and not _is_number(columns[name]):
            raise ExportError(
                f"column {name} of {source} holds {columns[name].lower()}, no numbers",
                _CONSEQUENCE,
                _WAY_OUT,
            )
    for name in _TEXTS:
        if columns[name] != "VARCHAR":
            raise ExportError(
                f"column {name} of {source} holds {columns[name].lower()}, no text",
                _CONSEQUENCE,
                _WAY_OUT,
            )
    return columns


def _is_number(kind: str) -> bool:
    return kind.startswith("DECIMAL") or kind.removeprefix("U") in (
        "TINYINT",
        "SMALLINT",
        "INTEGER",
        "BIGINT",
        "HUGEINT",
        "FLOAT",
        "DOUBLE",
    )


def _stage(connection: duckdb.DuckDBPyConnection, path: Path, columns: dict[str, str]) -> None:
    """Make the table `given`: the file's rows in our types, each with what is `wrong` with it."""
    texts = [f"{name}::VARCHAR AS {name}" for name in _TEXTS]
    numbers = [f"{name}::DOUBLE AS {name}" for name in _NUMBERS]
    # Of an odd power nothing is known, which says nothing about the latency.
    numbers += [
        f"CASE WHEN isfinite({name}::DOUBLE) AND {name} > 0 THEN {name}::DOUBLE END AS {name}"
        if name in columns
        else f"NULL::DOUBLE AS {name}"
        for name in _OPTIONAL
    ]
    no_size = " OR ".join(
        f"coalesce(NOT (isfinite({name}) AND {name} >= 1 AND {name} = floor({name})), true)"
        for name in _SIZES
    )
    too_large = " ".join(
        f"WHEN {name} > {largest} THEN '{name} is above {largest}'"
        for name, largest in LARGEST_SIZE.items()
    )
    no_text = " OR ".join(f"coalesce({name} = '', true)" for name in _TEXTS)
    separators = " OR ".join(f"contains({name}, '{SEPARATOR}')" for name in _JOINED)
    no_groups = (
        f"moe_dtype = 'int4_wo' AND (hidden_size % {INT4_GROUP_SIZE} <> 0 "
        f"OR (inter_size / moe_tp_size) % {INT4_GROUP_SIZE} <> 0)"
    )
    known = ", ".join(quoted_text(name) for name in QUANTISATIONS)
    connection.execute(f"""
        CREATE TABLE given AS
        SELECT *,
               CASE
                 WHEN op_name IS DISTINCT FROM 'moe' THEN 'op_name is not moe'
                 WHEN {no_text} THEN 'a name is missing'
                 WHEN {separators} THEN 'a name holds {SEPARATOR}'
                 WHEN coalesce(NOT (isfinite(latency) AND latency > 0), true)
                   THEN 'latency is missing, not finite or not positive'
                 WHEN {no_size} THEN 'a size is not a whole number of at least 1'
                 {too_large}
                 WHEN moe_dtype NOT IN ({known}) THEN 'moe_dtype ' || moe_dtype || ' is unknown'
                 WHEN inter_size % moe_tp_size <> 0
                   THEN 'inter_size is no multiple of moe_tp_size'
                 WHEN num_experts % moe_ep_size <> 0
                   THEN 'num_experts is no multiple of moe_ep_size'
                 WHEN topk > num_experts THEN 'topk is above num_experts'
                 WHEN {no_groups} THEN {quoted_text(_NO_GROUPS)}
               END AS wrong
        FROM (SELECT {", ".join([*texts, *numbers])} FROM read_parquet({quoted_file(path)}))
    """)
    quantisation = " ".join(
        f"WHEN {quoted_text(theirs)} THEN {quoted_text(ours)}"
        for theirs, ours in QUANTISATIONS.items()
    )
    # One row for each thing measured; the median of those that measured the same.
    connection.execute(f"""
        CREATE TABLE layers AS
        SELECT device,
               lower(framework) || ' ' || version AS framework,
               lower(framework) || ':' || kernel_source AS kernel,
               CASE moe_dtype {quantisation} END AS quantisation,
               hidden_size::BIGINT AS d_model,
               (inter_size / moe_tp_size)::BIGINT AS d_ff,
               num_tokens::BIGINT AS tokens,
               topk::BIGINT AS top_k,
               (num_experts / moe_ep_size)::BIGINT AS experts,
               moe_ep_size::BIGINT AS ep_size,
               moe_tp_size::BIGINT AS tp_size,
               distribution,
               median(latency) * 1e3 AS latency_us,
               median(power) AS power_w,
               median(power_limit) AS power_limit_w
        FROM given WHERE wrong IS NULL
        GROUP BY ALL
    """)


def _checked_rows(
    connection: duckdb.DuckDBPyConnection, source: str
) -> tuple[int, dict[str, int], int]:
    """Return the rows of the file, those skipped by reason, and those that repeat another."""
    reasons = dict(
        connection.execute("SELECT wrong, count(*) FROM given GROUP BY wrong ORDER BY 1").fetchall()
    )
    rows = sum(reasons.values())
    usable = reasons.pop(None, 0)
    if not usable:
        why = "; ".join(f"{number} x {reason}" for reason, number in reasons.items())
        raise ExportError(
            f"{source} has no row that can be used ({why or 'it has no rows'})",
            _CONSEQUENCE,
            _WAY_OUT,
        )
    found = connection.execute("SELECT count(*) FROM layers").fetchone()
    return rows, reasons, usable - (found[0] if found else 0)


def _one_device(connection: duckdb.DuckDBPyConnection, source: str) -> str:
    found = connection.execute("SELECT DISTINCT device FROM layers ORDER BY device").fetchall()
    devices = [str(device) for (device,) in found]
    if len(devices) > 1:
        raise ExportError(
            f"{source} holds measurements of {len(devices)} devices ({', '.join(devices[:5])})",
            "one file is of one device; nothing was ingested",
            "split the file by its column device",
        )
    return devices[0]


_CLASS = ("d_model", "d_ff", "quantisation", "kernel", "framework")


def _name_classes(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the table `classes`: the class id of each distinct class in `layers`."""
    found = connection.execute(f"SELECT DISTINCT {', '.join(_CLASS)} FROM layers").fetchall()
    named = [
        (*key, class_id(_expert(*key[:3]), "layer", Kernel(name=key[3], framework=key[4]), "warm"))
        for key in found
    ]
    _make_table(connection, "classes", (*_CLASS, "class_id"), named)


def _expert(d_model: int, d_ff: int, quantisation: Quantisation) -> ExpertClass:
    return ExpertClass(d_model=d_model, d_ff=d_ff, quantisation=quantisation)


def _name_devices(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the table `devices`: the device id of each distinct device and power limit."""
    found = connection.execute("SELECT DISTINCT device, power_limit_w FROM layers").fetchall()
    named = [
        (
            name,
            limit_w,
            DeviceFingerprint(kind="gpu", name=name, power_limit_w=limit_w or 0.0).device_id,
        )
        for name, limit_w in found
    ]
    _make_table(connection, "devices", ("device", "power_limit_w", "device_id"), named)


def _make_table(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    columns: Sequence[str],
    rows: list[tuple[Any, ...]],
) -> None:
    values = dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))
    if "power_limit_w" in values:
        values["power_limit_w"] = pa.array(values["power_limit_w"], pa.float64())
    connection.register(name, pa.table(values))


def _measurements(connection: duckdb.DuckDBPyConnection, run_id: str) -> pa.Table:
    """Return the rows; what the file does not say is NULL."""
    window_us = TRUSTED_WINDOW_S / CALLS_OF_A_POWER_WINDOW * 1e6
    expert = ExpertClass(d_model=1, d_ff=1)
    constants = {
        "block": expert.block,
        "activation": expert.activation,
        "dtype": expert.dtype,
        "op": "layer",
        "kernel_source_hash": "",
        "config": "{}",
        "cache_state": "warm",
        "status": "ok",
        "backend": BACKEND,
        "timer": "cuda_graph",
        "device_kind": "gpu",
        "costprof_version": importlib.metadata.version("costprof"),
        "run_id": run_id,
    }
    values = {name: quoted_text(text) for name, text in constants.items()}
    values |= {
        name: name
        for name in (*_CLASS, "tokens", "experts", "top_k", "ep_size", "tp_size", "distribution")
    }
    values |= dict.fromkeys(("n_heads", "n_kv_heads", "head_dim", "context_len"), "0")
    values |= dict.fromkeys((f"latency_us_{name}" for name in _QUANTILES), "latency_us")
    values |= {
        # A hash of all that defines the row: the class has the rest.
        "scenario_id": "left(sha256(concat_ws('|', class_id, tokens, experts, top_k, ep_size, "
        "tp_size, distribution)), 16)",
        "class_id": "class_id",
        "batch_tokens": "tokens",
        "wall_span_us": "latency_us",
        "power_mean_w": "power_w",
        "power_limit_w": "power_limit_w",
        "energy_mj": "power_w * latency_us * 1e-3",
        "energy_trusted": f"CASE WHEN power_w IS NOT NULL THEN latency_us >= {window_us!r} END",
        "energy_source": "CASE WHEN power_w IS NOT NULL THEN 'power_samples' END",
        "device_id": "device_id",
        "device_name": "device",
    }
    chosen = ", ".join(f"{sql} AS {name}" for name, sql in values.items())
    found = connection.execute(f"""
        SELECT {chosen} FROM (
            SELECT * FROM layers
            JOIN classes USING ({", ".join(_CLASS)})
            JOIN (SELECT device, device_id, power_limit_w AS limit_w FROM devices) USING (device)
            WHERE limit_w IS NOT DISTINCT FROM power_limit_w
        )
        ORDER BY kernel, quantisation, d_model, d_ff, top_k, experts, ep_size, tp_size,
                 distribution, tokens
    """).to_arrow_table()
    columns = [
        found[column.name].cast(column.type)
        if column.name in found.column_names
        else pa.nulls(found.num_rows, column.type)
        for column in MEASUREMENTS
    ]
    return pa.table(columns, schema=MEASUREMENTS)
