"""Tables written by earlier versions of costprof, brought forward one schema version at a time.

Version 2 added the columns that say which layer a row prices, and the bytes of a fitted model
beside the manifest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from costprof.costmodel.manifest import SCHEMA_VERSION
from costprof.costmodel.rows import TABLE_SCHEMA
from costprof.costmodel.sealing import content_hash

_ADDED_COLUMNS = {2: ("experts", "top_k", "ep_size", "tp_size", "distribution")}


@dataclass(frozen=True, slots=True)
class StoredTable:
    """A table as a file holds it: the manifest's JSON object, rows and model of its version."""

    values: dict[str, Any]
    rows: pa.Table
    model: bytes

    @property
    def version(self) -> int:
        """The schema version it is in."""
        return int(self.values["schema_version"])


def schema_of(version: int) -> pa.Schema:
    """Return the columns of tables of schema `version`."""
    later = {name for since, names in _ADDED_COLUMNS.items() if since > version for name in names}
    return pa.schema([field for field in TABLE_SCHEMA if field.name not in later])


def migrated(stored: StoredTable) -> StoredTable:
    """Return `stored` in the schema version at hand, sealed by its rule."""
    if stored.version == SCHEMA_VERSION:
        return stored
    while stored.version < SCHEMA_VERSION:
        stored = _STEPS[stored.version](stored)
    sealed = content_hash(stored.values, stored.rows, stored.model)
    return dataclasses.replace(stored, values={**stored.values, "content_hash": sealed})


def _from_1(stored: StoredTable) -> StoredTable:
    rows = stored.rows
    for name in _ADDED_COLUMNS[2]:
        empty = pa.nulls(rows.num_rows, TABLE_SCHEMA.field(name).type)
        rows = rows.append_column(TABLE_SCHEMA.field(name), empty)
    return StoredTable(
        # Tables without tiled layers did not say so.
        values={"tiled_layers": [], **stored.values, "schema_version": 2},
        rows=rows.select(schema_of(2).names),
        model=b"",
    )


_STEPS: dict[int, Callable[[StoredTable], StoredTable]] = {1: _from_1}
