"""A cost table as CSV or JSON text, for tools that read no Parquet."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from costprof.costmodel.rows import TABLE_SCHEMA
from costprof.costmodel.tablefile import TableFile

_BATCH_ROWS = 1024


def rows_csv(rows: pa.Table) -> str:
    """Return the rows as CSV with a header; counters are JSON, missing values and NaN empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, TABLE_SCHEMA.names, lineterminator="\n")
    writer.writeheader()
    for row in _plain_rows(rows):
        writer.writerow({**row, "counters": json.dumps(row["counters"], sort_keys=True)})
    return text.getvalue()


def table_json(file: TableFile) -> str:
    """Return the manifest and the rows as one JSON object, a row a line; no model."""
    manifest = json.dumps(file.manifest.to_dict(), sort_keys=True, allow_nan=False)
    rows = ",\n".join(json.dumps(row, allow_nan=False) for row in _plain_rows(file.rows))
    return f'{{"manifest": {manifest},\n"rows": [\n{rows}\n]}}\n'


def _plain_rows(rows: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in rows.to_batches(max_chunksize=_BATCH_ROWS):
        for row in batch.to_pylist():
            counters = {name: _finite(value) for name, value in row["counters"] or ()}
            yield {**{name: _finite(value) for name, value in row.items()}, "counters": counters}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
