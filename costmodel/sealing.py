"""The content hash of a cost table, by the rule of each schema version."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from costprof.core.hashing import content_id


def content_hash(values: dict[str, Any], rows: pa.Table, model: bytes = b"") -> str:
    """Return the hash over the manifest's JSON object without its own hash, rows and model.

    `values` are hashed as the file holds them, so that fields a manifest gains later leave older
    files theirs. Version 1 had no model. `rows` have the columns of the version of `values`.

    Raises:
        ValueError: `values` hold numbers that are not finite.
    """
    fields = {name: value for name, value in values.items() if name != "content_hash"}
    covered = {"manifest": fields, "rows": rows_hash(rows)}
    if values["schema_version"] > 1:
        covered["model"] = hashlib.sha256(model).hexdigest()
    return content_id(covered, length=64)


def rows_hash(rows: pa.Table) -> str:
    """Return the SHA-256 of the rows' values in order, whatever their encoding on disk."""
    digest = hashlib.sha256(str(rows.num_rows).encode())
    for name in rows.schema.names:
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
