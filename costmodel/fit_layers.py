"""From whole layers of a named routing to rows of a table and the model that prices others."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa

from costprof.costmodel.description import (
    Description,
    dataset_hash,
    describe,
    mixed_conditions,
)
from costprof.costmodel.devices import spec_for
from costprof.costmodel.fitted import FittedTable, Progress
from costprof.costmodel.grouped.dataset import measured_layers
from costprof.costmodel.grouped.fit import LEAST_LAYERS, fit_grouped
from costprof.costmodel.grouped.rows import measured_rows
from costprof.costmodel.grouped.serialise import to_bytes
from costprof.costmodel.manifest import Manifest, SourceDataset
from costprof.costmodel.rows import sorted_rows

__all__ = ["LEAST_LAYERS", "fit_layer_rows"]

METHOD = (
    "new shapes: predicted by constants and trees fitted without them; known groups: one token "
    "count, one shard and routing, or nine tenths of the group left out of its field"
)

_CONDITIONS = (
    *("op", "class_id", "device_name", "device_kind", "device_units", "driver_version"),
    *("power_limit_w", "num_threads", "costprof_version", "python_version", "torch_version"),
    *("triton_version", "status"),
)


def fit_layer_rows(folder: Path, rows: pa.Table, tell: Progress) -> FittedTable:
    """Fit the `named_layers` `rows` of the dataset in `folder`.

    Raises:
        DatasetError: they are of several devices.
    """
    described = describe_layers(folder, rows)
    spec = spec_for(described.device)
    measured = measured_layers(rows)
    fitted = fit_grouped(measured, spec, tell)
    tell("assembling", 0, 1)
    manifest = Manifest(
        device=described.device,
        software=described.software,
        moes=described.moes,
        sources=(source_of_layers(folder, rows, described.name),),
        validation={"grouped": {"method": METHOD, **fitted.figures}},
        notes=described.notes,
    )
    table = sorted_rows(measured_rows(rows, measured, fitted.model, spec))
    return FittedTable(table, manifest, to_bytes(fitted.model))


def describe_layers(folder: Path, rows: pa.Table) -> Description:
    """Return the description of `named_layers` `rows`, with notes on conditions that are mixed.

    Raises:
        DatasetError: they are of several devices.
    """
    conditions: list[dict[str, Any]] = rows.select(_CONDITIONS).to_pylist()
    # Files that do not say the power limit come first by name, perhaps; one that does decides.
    conditions.sort(key=lambda row: -(row["power_limit_w"] or 0.0))
    described = describe(folder, conditions)
    return dataclasses.replace(described, notes=(*described.notes, *mixed_conditions(conditions)))


def source_of_layers(folder: Path, rows: pa.Table, name: str) -> SourceDataset:
    """Return the dataset in `folder` as the source of a table of all its layers `rows`."""
    return SourceDataset(
        name=name,
        content_hash=dataset_hash(folder),
        rows_used=rows.num_rows,
        rows_noisy=rows["status"].to_pylist().count("noisy"),
    )
