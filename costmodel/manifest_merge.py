"""The manifests of several tables as one, with a note of all that they do not agree on.

What can only stand once is that of the first table that has it. Compositions and layers under tile
configs are those with the most measurements behind them, then the first table's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from costprof.costmodel.manifest import Manifest, TiledLayer
from costprof.costmodel.tablefile import TableFile

T = TypeVar("T")
MERGED = "of_merged_tables"
"""Key of `Manifest.validation` under which figures of merged tables stand, by content hash."""


def merged_model(files: list[TableFile], notes: list[str]) -> bytes:
    """Return the model of the first of `files` that has one; append to `notes` whose it is."""
    names = [_name(file.manifest) for file in files]
    return _first_of(names, [file.model for file in files], b"", "the model is that", notes)


def merged_manifest(
    manifests: list[Manifest], owners: npt.NDArray[np.int64], rows: pa.Table, notes: list[str]
) -> Manifest:
    """Return the manifest of merged `rows`, of which row `i` is from table `owners[i]`.

    `notes` are further ones to take up; they and those made here follow those of the tables.
    """
    names = [_name(manifest) for manifest in manifests]
    added = [*_differences(manifests, names), *notes]
    moes, _ = _union(
        [{moe.name: moe for moe in manifest.moes} for manifest in manifests],
        lambda moe: 0,
        lambda key, kept, other: added.append(
            f"the MoE {key} has other experts in {names[other]}: those of {names[kept]} are kept"
        ),
    )
    compositions, whose = _union(
        [manifest.compositions for manifest in manifests],
        lambda each: each.layers if each.fitted else -1,
        lambda key, kept, other: added.append(
            f"class {str(key)[:6]} composes otherwise in {names[other]}: {names[kept]}, "
            "with as many layers measured or more, is kept"
        ),
    )
    for class_id, owner in whose.items():
        in_class = np.array(rows["class_id"].to_pylist(), dtype=object) == class_id
        if (owners[in_class] != owner).any():
            added.append(
                f"class {class_id[:6]}: its layers compose as fitted to the rows of "
                f"{names[owner]}, not all its rows are from there"
            )
    sources = sorted(set(rows["energy_source"].to_pylist()))
    if len(sources) > 1:
        added.append(f"energies are of several sources ({', '.join(sources)}): compare with care")
    tiled_layers, _ = _union(
        [{_identity(layer): layer for layer in manifest.tiled_layers} for manifest in manifests],
        lambda layer: layer.tried,
        lambda key, kept, other: added.append(
            "layers under tile configs are in several tables: those of the most configs are kept"
        ),
    )
    parameters = _first_of(
        names, [each.parameters for each in manifests], {}, "the fitted parameters are those", added
    )
    software = dict.fromkeys(manifests[0].software, "")
    for manifest in reversed(manifests):
        software |= {name: value for name, value in manifest.software.items() if value}
    return Manifest(
        device=manifests[0].device,
        moes=tuple(moes.values()),
        software=software,
        sources=tuple(dict.fromkeys(each for manifest in manifests for each in manifest.sources)),
        compositions=compositions,
        validation=_validation(manifests, added),
        parameters=parameters,
        notes=tuple(dict.fromkeys([*(n for each in manifests for n in each.notes), *added])),
        tiled_layers=tuple(tiled_layers.values()),
    )


def _name(manifest: Manifest) -> str:
    """Return what notes call a table by: its datasets and the start of its content hash."""
    datasets = ", ".join(source.name for source in manifest.sources) or "a table"
    return f"{datasets} ({manifest.content_hash[:8]})"


def _differences(manifests: list[Manifest], names: list[str]) -> list[str]:
    """Name what the tables were measured under, where it is known of both and not the same."""
    first = {**manifests[0].device.to_dict(), **manifests[0].software}
    notes = []
    for name, manifest in zip(names, manifests, strict=True):
        other = {**manifest.device.to_dict(), **manifest.software}
        notes += [
            f"{name} was measured under {key} {other[key]}, {names[0]} under {value}"
            for key, value in first.items()
            if value and other.get(key) and other[key] != value
        ]
    return notes


def _union(
    tables: list[dict[str, T]],
    rank: Callable[[T], int],
    conflict: Callable[[str, int, int], None],
) -> tuple[dict[str, T], dict[str, int]]:
    """Return all entries and the table each is from; of unequal ones that of highest `rank`.

    Of equals the first. `conflict` is told the key, the table kept and the other.
    """
    kept: dict[str, T] = {}
    whose: dict[str, int] = {}
    for number, entries in enumerate(tables):
        for key, value in entries.items():
            if key not in kept:
                kept[key], whose[key] = value, number
            elif kept[key] != value:
                loser = number
                if rank(value) > rank(kept[key]):
                    loser, whose[key] = whose[key], number
                    kept[key] = value
                conflict(key, whose[key], loser)
    return kept, whose


def _first_of(names: list[str], values: list[T], none: T, what: str, notes: list[str]) -> T:
    """Return the first of `values` that is not `none`; a note says whose, unless all are equal."""
    found = next((i for i, value in enumerate(values) if value != none), None)
    if found is None:
        return none
    if any(value != values[found] for value in values):
        notes.append(f"{what} of {names[found]}, fitted without the rows of the other tables")
    return values[found]


def _validation(manifests: list[Manifest], notes: list[str]) -> dict[str, Any]:
    """Return the figures where all tables have the same; else each table's apart."""
    first = manifests[0].validation
    if all(manifest.validation == first for manifest in manifests):
        return first
    apart: dict[str, Any] = {}
    for manifest in manifests:
        if MERGED in manifest.validation:
            apart |= manifest.validation[MERGED]
        elif manifest.validation:
            apart[manifest.content_hash] = manifest.validation
    notes.append("errors were validated in each merged table by itself, none in the whole")
    return {MERGED: apart}


def _identity(layer: TiledLayer) -> str:
    fields = (layer.kernel, layer.cache_state, layer.experts, layer.top_k, layer.distribution)
    return json.dumps([layer.class_fields, *fields, layer.tokens], sort_keys=True)
