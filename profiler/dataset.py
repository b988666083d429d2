"""Read and write the Parquet folders of a dataset."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from costprof.core.errors import DatasetError
from costprof.core.files import replacing
from costprof.profiler.schema import ADDED_COLUMNS, MEASUREMENTS


def write_measurements(folder: Path, part: str, rows: Iterable[dict[str, Any]]) -> None:
    """Write `rows` as the part `part` of `measurements/`, replacing an earlier one atomically."""
    table = pa.Table.from_pylist(list(rows), schema=MEASUREMENTS)
    with replacing(folder / "measurements" / f"{part}.parquet") as path:
        pq.write_table(table, path, compression="zstd")


def read_measurements(folder: Path) -> pa.Table:
    """Return all rows of `measurements/`, with the columns of `schema.MEASUREMENTS`.

    Columns that came after a part was written are NULL.

    Raises:
        DatasetError: there are none, or a part is damaged or of another schema.
    """
    parts = sorted((folder / "measurements").glob("*.parquet"))
    if not parts:
        raise DatasetError(
            f"{folder} holds no measurements",
            "there is nothing to read",
            "make them with: costprof sweep --preset cpu-demo --out DIR",
        )
    return pa.concat_tables([read_part(part) for part in parts])


def read_part(part: Path) -> pa.Table:
    """Return the rows of one Parquet file of `measurements/`, as `read_measurements` does.

    Raises:
        DatasetError: it is damaged or of another schema.
    """
    try:
        table = pq.read_table(part)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(
            f"{part} is damaged ({str(error).splitlines()[0]})",
            "the dataset cannot be read",
            "delete that file and go on with costprof sweep --resume",
        ) from error
    table = _with_added_columns(table)
    if not table.schema.equals(MEASUREMENTS):
        raise DatasetError(
            f"{part} has other columns than this version of costprof writes",
            "the dataset cannot be read",
            "measure again, or use the version that wrote it",
        )
    return table


def _with_added_columns(table: pa.Table) -> pa.Table:
    missing = [name for name in ADDED_COLUMNS if name not in table.column_names]
    for name in missing:
        table = table.append_column(
            MEASUREMENTS.field(name), pa.nulls(table.num_rows, MEASUREMENTS.field(name).type)
        )
    if missing and set(table.column_names) == set(MEASUREMENTS.names):
        return table.select(MEASUREMENTS.names)
    return table
