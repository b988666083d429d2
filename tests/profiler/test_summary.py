from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from costprof.core.errors import DatasetError
from costprof.profiler.dataset import read_measurements, write_measurements
from costprof.profiler.schema import ADDED_COLUMNS, MEASUREMENTS
from costprof.profiler.summary import suggested_queries, summarise_dataset


def row(**values: Any) -> dict[str, Any]:
    return dict.fromkeys(MEASUREMENTS.names) | {
        "scenario_id": "a",
        "op": "expert",
        "block": "ffn",
        "quantisation": "none",
        "dtype": "float32",
        "tokens": 4,
        "status": "ok",
        "latency_us_p50": 10.0,
        **values,
    }


def test_classes_failures_and_rows_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "odd [1] 'name' *"
    write_measurements(
        folder,
        "r1",
        [
            row(),
            row(tokens=8, latency_us_p50=30.0, status="noisy"),
            row(status="failed", latency_us_p50=None, error="boom"),
        ],
    )
    summary = summarise_dataset(folder)
    assert summary.rows == {
        "measurements": 3,
        "kernels": 0,
        "ranges": 0,
        "counters": 0,
        "energy": 0,
    }
    (only,) = summary.classes
    assert (only["scenarios"], only["noisy"], only["failed"]) == (3, 1, 1)
    assert (only["tokens_min"], only["tokens_max"]) == (4, 8)
    assert (only["latency_us_min"], only["latency_us_max"]) == (10.0, 30.0)
    assert summary.failures == [{"op": "expert", "tokens": 4, "error": "boom", "scenarios": 1}]
    (query,) = suggested_queries(folder, summary.rows)
    assert len(duckdb.sql(query).fetchall()) == 3


def test_a_folder_without_a_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no dataset"):
        summarise_dataset(tmp_path)


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    write_measurements(tmp_path, "r1", [row()])
    part = tmp_path / "measurements" / "r1.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(DatasetError, match="damaged") as caught:
        summarise_dataset(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_dataset_from_before_a_column_was_added_reads_as_null(tmp_path: Path) -> None:
    write_measurements(tmp_path, "r1", [row()])
    write_measurements(tmp_path, "r2", [row(scenario_id="b")])
    part = tmp_path / "measurements" / "r1.parquet"
    pq.write_table(pq.read_table(part).drop_columns(list(ADDED_COLUMNS)), part)
    table = read_measurements(tmp_path)
    assert table.schema.equals(MEASUREMENTS)
    assert table["scenario_id"].to_pylist() == ["a", "b"]
    assert all(table[name].null_count == 2 for name in ADDED_COLUMNS)
    assert pq.read_table(part, schema=MEASUREMENTS).schema.equals(MEASUREMENTS)
    pq.write_table(pq.read_table(part).drop_columns(["tokens"]), part)
    with pytest.raises(DatasetError, match="has other columns"):
        read_measurements(tmp_path)
