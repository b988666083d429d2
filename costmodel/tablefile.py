"""A cost table on disk: one Parquet file that is written atomically and read with suspicion."""

from __future__ import annotations

import base64
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from costprof.core.errors import TableError
from costprof.core.files import replacing
from costprof.costmodel.manifest import (
    METADATA_KEY,
    MODEL_KEY,
    SCHEMA_VERSION,
    Manifest,
    damaged_manifest,
    manifest_values,
)
from costprof.costmodel.migrations import StoredTable, migrated, schema_of
from costprof.costmodel.rows import TABLE_SCHEMA
from costprof.costmodel.sealing import content_hash


@dataclass(frozen=True, slots=True)
class TableFile:
    """What the file of a cost table holds.

    Attributes:
        rows: Columns of `TABLE_SCHEMA`.
        manifest: Where they come from and how well they fit.
        model: A fitted model as bytes that nobody parses on loading; empty where there is none.
        stored_version: Schema version of the file, before it was brought forward.
    """

    rows: pa.Table
    manifest: Manifest
    model: bytes = b""
    stored_version: int = SCHEMA_VERSION


def write_table(
    path: str | Path, rows: pa.Table, manifest: Manifest, model: bytes = b""
) -> Manifest:
    """Write `rows`, `manifest` and `model` to `path` atomically; return the manifest with its hash.

    Raises:
        TableError: `rows` lack columns of `TABLE_SCHEMA`, have others, or are none.
        OSError: the folder cannot be written.
    """
    check_schema(rows, "the rows")
    rows = _plain_rows(rows, TABLE_SCHEMA)
    if rows.num_rows == 0:
        raise TableError(
            "there are no rows", "no table was written", "fit a dataset that holds measurements"
        )
    current = dataclasses.replace(manifest, schema_version=SCHEMA_VERSION)
    sealed = dataclasses.replace(current, content_hash=content_hash(current.to_dict(), rows, model))
    metadata = {METADATA_KEY: sealed.to_json().encode()}
    if model:
        # Parquet's metadata is text: readers other than Arrow refuse a file of other bytes there.
        metadata[MODEL_KEY] = base64.b64encode(model)
    with (
        replacing(Path(path)) as temporary,
        # Statistics, page indexes and Arrow's own schema are left out: no type here needs it, and
        # all of them could lie about the rows unnoticed.
        pq.ParquetWriter(
            temporary,
            TABLE_SCHEMA,
            write_statistics=False,
            write_page_checksum=True,
            store_schema=False,
        ) as writer,
    ):
        writer.write_table(rows)
        writer.add_key_value_metadata(metadata)
    return sealed


def read_table(path: str | Path) -> TableFile:
    """Return what the table at `path` holds, its hash verified by the rule of its schema version.

    A table of an earlier version is brought forward; its hash is then that of the content as this
    version writes it.

    Raises:
        TableError: there is no such file; it is damaged, no cost table or of a later schema.
    """
    path = Path(path)
    rows = _read_parquet(path)
    metadata = rows.schema.metadata or {}
    text = metadata.get(METADATA_KEY)
    if text is None:
        raise TableError(
            f"{path} is a Parquet file without a costprof manifest",
            "it is no cost table and was not loaded",
            "make one with `costprof fit`",
        )
    values = manifest_values(text)
    version = values["schema_version"]
    check_schema(rows, str(path), version)
    stored = StoredTable(
        values, _plain_rows(rows, schema_of(version)), _model(metadata.get(MODEL_KEY, b""))
    )
    _check_hash(path, stored)
    current = migrated(stored)
    manifest = Manifest.from_dict(current.values)
    return TableFile(current.rows, manifest, current.model, stored_version=version)


def check_schema(rows: pa.Table, whose: str, version: int = SCHEMA_VERSION) -> None:
    """Raise TableError unless `rows` have exactly the columns of schema `version`."""
    schema = schema_of(version)
    for name in dict.fromkeys([*schema.names, *rows.schema.names]):
        found = rows.schema.field(name).type if name in rows.schema.names else None
        expected = schema.field(name).type if name in schema.names else None
        if not _same_type(found, expected):
            raise TableError(
                f"column {name!r} of {whose}: {found or 'missing'}, expected {expected or 'none'}",
                f"it is no cost table of schema version {version}",
                "fit its dataset again with this version of costprof",
            )


def _check_hash(path: Path, stored: StoredTable) -> None:
    said = stored.values.get("content_hash")
    try:
        found = content_hash(stored.values, stored.rows, stored.model)
    except (ValueError, RecursionError) as error:
        raise damaged_manifest(error) from error
    if found != said:
        raise TableError(
            f"the content of {path} does not match its hash {str(said)[:12]}",
            "it was changed or damaged and was not loaded",
            "copy it again from its source or fit it anew",
        )


def _model(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise damaged_manifest(error) from error


def _read_parquet(path: Path) -> pa.Table:
    if not path.is_file():
        raise TableError(
            f"there is no file {path}", "no table was loaded", "make one with `costprof fit`"
        )
    try:
        # ParquetFile, not read_table: a path like a=1/t.parquet must not add a column `a`.
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            return file.read(use_threads=False)
    # Damaged bytes surface as any of these, by where they lie in the file.
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise TableError(
            f"{path} cannot be read as Parquet ({first_line})",
            "no table was loaded",
            "copy it again from its source or fit it anew",
        ) from error


def _plain_rows(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return `rows` in the order of `schema` and without metadata."""
    return rows.select(schema.names).cast(schema)


def _same_type(found: pa.DataType | None, expected: pa.DataType | None) -> bool:
    if found is None or expected is None:
        return False
    if pa.types.is_map(expected):
        # The names of a map's inner fields differ between writers.
        return bool(
            pa.types.is_map(found)
            and found.key_type == expected.key_type
            and found.item_type == expected.item_type
        )
    return bool(found == expected)
