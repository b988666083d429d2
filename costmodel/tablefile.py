"""A cost table on disk: one Parquet file that is written atomically and read with suspicion."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from costprof.core.errors import TableError
from costprof.core.files import replacing
from costprof.costmodel.manifest import METADATA_KEY, Manifest
from costprof.costmodel.rows import TABLE_SCHEMA


def write_table(path: str | Path, rows: pa.Table, manifest: Manifest) -> Manifest:
    """Write `rows` and `manifest` to `path` atomically; return the manifest with its hash.

    Raises:
        TableError: `rows` lack columns of `TABLE_SCHEMA`, have others, or are none.
        OSError: the folder cannot be written.
    """
    check_schema(rows, "the rows")
    rows = _without_metadata(rows)
    if rows.num_rows == 0:
        raise TableError(
            "there are no rows", "no table was written", "fit a dataset that holds measurements"
        )
    sealed = dataclasses.replace(manifest, content_hash=manifest.hash_with(rows_hash(rows)))
    with replacing(Path(path)) as temporary:
        # Statistics and page indexes are left out: they could lie about the rows unnoticed.
        pq.write_table(
            rows.replace_schema_metadata({METADATA_KEY: sealed.to_json().encode()}),
            temporary,
            write_statistics=False,
            write_page_checksum=True,
        )
    return sealed


def read_table(path: str | Path) -> tuple[pa.Table, Manifest]:
    """Return rows and manifest of the table at `path`, hash verified.

    Raises:
        TableError: there is no such file; it is damaged, no cost table or of another schema.
    """
    path = Path(path)
    rows = _read_parquet(path)
    text = (rows.schema.metadata or {}).get(METADATA_KEY)
    if text is None:
        raise TableError(
            f"{path} is a Parquet file without a costprof manifest",
            "it is no cost table and was not loaded",
            "make one with `costprof fit`",
        )
    manifest = Manifest.from_json(text)
    check_schema(rows, str(path))
    rows = _without_metadata(rows)
    if manifest.hash_with(rows_hash(rows)) != manifest.content_hash:
        raise TableError(
            f"the content of {path} does not match its hash {manifest.content_hash[:12]}",
            "it was changed or damaged and was not loaded",
            "copy it again from its source or fit it anew",
        )
    return rows, manifest


def check_schema(rows: pa.Table, whose: str) -> None:
    """Raise TableError unless `rows` have exactly the columns of `TABLE_SCHEMA`."""
    for name in dict.fromkeys([*TABLE_SCHEMA.names, *rows.schema.names]):
        found = rows.schema.field(name).type if name in rows.schema.names else None
        expected = TABLE_SCHEMA.field(name).type if name in TABLE_SCHEMA.names else None
        if not _same_type(found, expected):
            raise TableError(
                f"column {name!r} of {whose}: {found or 'missing'}, expected {expected or 'none'}",
                "it is no cost table of this schema",
                "fit its dataset again with this version of costprof",
            )


def rows_hash(rows: pa.Table) -> str:
    """Return the SHA-256 of the rows' values in order, whatever their encoding on disk."""
    digest = hashlib.sha256(str(rows.num_rows).encode())
    for name in TABLE_SCHEMA.names:
        column = rows.column(name).combine_chunks()
        digest.update(f"|{name}|{column.type}|".encode())
        if pa.types.is_string(column.type):
            # Values in order of first appearance and a code per row: quicker than joining text.
            coded = column.dictionary_encode()
            digest.update(json.dumps(coded.dictionary.to_pylist()).encode())
            digest.update(coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).tobytes())
        elif pa.types.is_map(column.type):
            digest.update(json.dumps(column.to_pylist()).encode())
        else:
            digest.update(pc.is_null(column).to_numpy(zero_copy_only=False).tobytes())
            values = column.fill_null(0).to_numpy(zero_copy_only=False)
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


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


def _without_metadata(rows: pa.Table) -> pa.Table:
    return rows.select(TABLE_SCHEMA.names).cast(TABLE_SCHEMA)


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
