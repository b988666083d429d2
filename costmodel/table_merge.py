"""Several tables of one device as one.

Where two price the same row, the better tier wins, then a metered energy over a modelled one, then
the table named first: a table holds neither dates nor numbers of calls to choose by.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from costprof.core.errors import DeviceMismatchError, InputError
from costprof.costmodel.manifest_merge import merged_manifest, merged_model
from costprof.costmodel.rows import KEY_FIELDS, TIERS, sorted_rows
from costprof.costmodel.tablefile import TableFile


@dataclass(frozen=True, slots=True)
class MergedTable:
    """The merged table, and how many of its rows are from each of those given."""

    file: TableFile
    rows_taken: tuple[int, ...]


def merge_tables(files: list[TableFile]) -> MergedTable:
    """Merge `files`, of equals the first preferred; one alone comes back as it is.

    Raises:
        InputError: there are none.
        DeviceMismatchError: they were measured on several device models.
    """
    if not files:
        raise InputError("no tables were given", "nothing was merged", "name two or more")
    first = files[0].manifest.device
    for device in (file.manifest.device for file in files):
        if (device.kind, device.name) != (first.kind, first.name):
            raise DeviceMismatchError(
                f"one table was measured on {first.name}, another on {device.name}",
                "their prices do not belong into one table",
                "merge tables of one device model",
            )
    owners, rows = _merged_rows([file.rows for file in files])
    notes: list[str] = []
    model = merged_model(files, notes)
    manifest = merged_manifest([file.manifest for file in files], owners, rows, notes)
    taken = np.bincount(owners, minlength=len(files))
    return MergedTable(TableFile(rows, manifest, model), tuple(int(count) for count in taken))


def _merged_rows(tables: list[pa.Table]) -> tuple[npt.NDArray[np.int64], pa.Table]:
    """Return the table that each row is from, and the rows, both in the order of the file."""
    whole = pa.concat_tables(tables)
    tiers = whole["tier"].to_pylist()
    modelled = [source == "modelled" for source in whole["energy_source"].to_pylist()]
    best: dict[Hashable, int] = {}
    keys = zip(*(whole[name].to_pylist() for name in KEY_FIELDS), strict=True)
    for row, key in enumerate(keys):
        held = best.setdefault(key, row)
        if (TIERS.index(tiers[row]), modelled[row]) < (TIERS.index(tiers[held]), modelled[held]):
            best[key] = row
    owners = np.repeat(np.arange(len(tables)), [table.num_rows for table in tables])
    kept = np.array(list(best.values()), dtype=np.int64)
    marked = sorted_rows(whole.take(kept).append_column("owner", pa.array(owners[kept])))
    return marked["owner"].to_numpy(), marked.drop_columns(["owner"])
