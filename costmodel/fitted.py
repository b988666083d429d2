"""What a fit hands over: the table before it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from costprof.costmodel.manifest import Manifest

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, the steps done and their number."""


@dataclass(frozen=True, slots=True)
class FittedTable:
    """Rows of `TABLE_SCHEMA`, their manifest and the bytes of a model, ready for `write_table`."""

    rows: pa.Table
    manifest: Manifest
    model: bytes = b""
