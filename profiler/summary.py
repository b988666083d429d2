"""What a dataset holds, in a few figures, by SQL over its Parquet folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from costprof.core.errors import DatasetError
from costprof.profiler.dataset import read_measurements
from costprof.profiler.duck import literal_file, quoted_text

FOLDERS = ("measurements", "kernels", "ranges", "counters", "energy")

_CLASSES = """
SELECT op,
       block,
       d_model,
       d_ff,
       CASE quantisation WHEN 'none' THEN dtype ELSE quantisation END AS weights,
       cache_state AS cache,
       any_value(class_id) AS class_id,
       experts,
       count(*) AS scenarios,
       min(tokens) AS tokens_min,
       max(tokens) AS tokens_max,
       min(latency_us_p50) AS latency_us_min,
       max(latency_us_p50) AS latency_us_max,
       median(robust_cv) AS robust_cv,
       count(*) FILTER (WHERE status = 'noisy') AS noisy,
       count(*) FILTER (WHERE status = 'failed') AS failed
FROM measurements
GROUP BY op, block, d_model, d_ff, weights, cache, experts, measurements.class_id
ORDER BY block DESC, d_model, d_ff, weights, op, cache
"""
_KERNELS = """
SELECT op,
       framework,
       kernel,
       CASE quantisation WHEN 'none' THEN dtype ELSE quantisation END AS weights,
       count(DISTINCT class_id) AS classes,
       count(*) AS scenarios,
       min(tokens) AS tokens_min,
       max(tokens) AS tokens_max,
       min(latency_us_p50) AS latency_us_min,
       max(latency_us_p50) AS latency_us_max,
       count(energy_mj) AS with_energy,
       count(*) FILTER (WHERE energy_trusted) AS energy_trusted,
       count(*) FILTER (WHERE status = 'noisy') AS noisy,
       count(*) FILTER (WHERE status = 'failed') AS failed
FROM measurements
GROUP BY op, framework, kernel, weights
ORDER BY op, framework, kernel, weights
"""
_ORIGIN = """
SELECT device_name, device_kind, backend, string_agg(DISTINCT timer, ', ' ORDER BY timer) AS timer,
       tool_version, torch_version, num_threads,
       string_agg(DISTINCT energy_source, ', ' ORDER BY energy_source) AS energy_source
FROM measurements GROUP BY ALL ORDER BY ALL
"""
_FAILURES = """
SELECT op, tokens, error, count(*) AS scenarios
FROM measurements WHERE status = 'failed' GROUP BY ALL ORDER BY scenarios DESC LIMIT 5
"""


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """Rows of each folder; classes, kernels, origins and failures as lists of plain rows."""

    rows: dict[str, int]
    classes: list[dict[str, Any]]
    kernels: list[dict[str, Any]]
    origins: list[dict[str, Any]]
    failures: list[dict[str, Any]]


def summarise_dataset(folder: Path) -> DatasetSummary:
    """Summarise the dataset in `folder`.

    Raises:
        DatasetError: there is none, or it is damaged.
    """
    rows = {name: _count(folder / name) for name in FOLDERS}
    if not any(rows.values()):
        raise DatasetError(
            f"{folder} holds no dataset",
            "there is nothing to show",
            "make one with: costprof sweep --preset cpu-demo --out DIR",
        )
    if not rows["measurements"]:
        return DatasetSummary(rows, [], [], [], [])
    connection = duckdb.connect()
    connection.register("measurements", read_measurements(folder))
    classes, kernels, origins, failures = (
        connection.sql(query).to_arrow_table().to_pylist()
        for query in (_CLASSES, _KERNELS, _ORIGIN, _FAILURES)
    )
    return DatasetSummary(rows, classes, kernels, origins, failures)


def suggested_queries(folder: Path, rows: dict[str, int]) -> list[str]:
    """SQL to go on with, for the folders that hold anything."""
    queries = []
    if rows["measurements"]:
        queries.append(
            "SELECT op, quantisation, tokens, latency_us_p50, robust_cv, status\n"
            f"FROM {_parts(folder, 'measurements')} ORDER BY op, quantisation, tokens"
        )
    if rows["ranges"] and rows["measurements"]:
        queries.append(
            # Attempts that were thrown away have ranges too.
            "SELECT scenario_id, count(*) AS calls, median(duration_ns) / 1e3 AS us\n"
            f"FROM {_parts(folder, 'ranges')}\n"
            f"WHERE source IN (SELECT run_id FROM {_parts(folder, 'measurements')})\n"
            "GROUP BY scenario_id"
        )
    elif rows["ranges"]:
        queries.append(
            "SELECT domain, text, count(*) AS calls, median(duration_ns) / 1e3 AS us\n"
            f"FROM {_parts(folder, 'ranges')} GROUP BY ALL ORDER BY calls DESC"
        )
    if rows["energy"]:
        queries.append(
            "SELECT scenario_id, trial, status, reason, source, energy_active_mj, disagreement\n"
            f"FROM {_parts(folder, 'energy')} ORDER BY run_order"
        )
    if rows["kernels"]:
        queries.append(
            "SELECT name, attribution, count(*) AS launches, sum(duration_ns) / 1e6 AS ms\n"
            f"FROM {_parts(folder, 'kernels')} GROUP BY ALL ORDER BY ms DESC"
        )
    return queries


def _parts(folder: Path, name: str) -> str:
    return quoted_text(f"{literal_file(folder)}/{name}/*.parquet")


def _count(folder: Path) -> int:
    parts = [literal_file(path) for path in sorted(folder.glob("*.parquet"))]
    if not parts:
        return 0
    try:
        found = duckdb.execute("SELECT count(*) FROM read_parquet($1)", [parts]).fetchone()
    except duckdb.Error as error:
        raise DatasetError(
            f"{folder} holds a damaged Parquet file ({str(error).splitlines()[0]})",
            "the dataset cannot be summarised",
            "delete that file and make it again",
        ) from error
    return int(found[0]) if found else 0
