"""Read and write the Parquet folders of a dataset."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from costprof.core.errors import DatasetError
from costprof.core.files import replacing
from costprof.profiler.schema import LATER_COLUMNS, MEASUREMENTS


def write_measurements(folder: Path, part: str, rows: Iterable[dict[str, Any]]) -> None:
    """Write `rows` as the part `part` of `measurements/`, replacing an earlier one atomically."""
    table = pa.Table.from_pylist(list(rows), schema=MEASUREMENTS)
    with replacing(folder / "measurements" / f"{part}.parquet") as path:
        pq.write_table(table, path, compression="zstd")


def read_measurements(folder: Path) -> pa.Table:
    """Return all rows of `measurements/`, with the columns of `schema.MEASUREMENTS`.

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
    tables = []
    for part in parts:
        try:
            table = _with_later_columns(pq.read_table(part))
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(
                f"{part} is damaged ({str(error).splitlines()[0]})",
                "the dataset cannot be read",
                "delete that file and go on with costprof sweep --resume",
            ) from error
        if not table.schema.equals(MEASUREMENTS):
            raise DatasetError(
                f"{part} has other columns than this version of costprof writes",
                "the dataset cannot be read",
                "measure again, or use the version that wrote it",
            )
        tables.append(table)
    return pa.concat_tables(tables)


def _with_later_columns(table: pa.Table) -> pa.Table:
    """Return `table` with the columns that the version which wrote it did not know yet."""
    for index, field in enumerate(MEASUREMENTS):  # ascending, so each index is its final one
        if field.name in LATER_COLUMNS and field.name not in table.column_names:
            index = min(index, table.num_columns)
            table = table.add_column(index, field, pa.nulls(table.num_rows, field.type))
    return table
