"""From a dataset to a cost table: roofline × residual, energy, layers, and how good they are."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa

from costprof.core.errors import DatasetError
from costprof.costmodel.assemble import curve_rows
from costprof.costmodel.composition import MIN_LAYERS, fit_compositions
from costprof.costmodel.description import dataset_hash, describe, mixed_conditions
from costprof.costmodel.devices import spec_for
from costprof.costmodel.energy import known_energy, power_curve
from costprof.costmodel.fit_layers import LEAST_LAYERS, fit_layer_rows
from costprof.costmodel.fitted import FittedTable, Progress
from costprof.costmodel.grouped.dataset import failed_layers, named_layers, unknown_routings
from costprof.costmodel.manifest import Composition, Manifest, MoeSpec, SourceDataset
from costprof.costmodel.measurements import MeasuredCurve, is_usable, measured_curves
from costprof.costmodel.residual import fit_latency
from costprof.costmodel.rows import rows_table, sorted_rows
from costprof.costmodel.tiled_layers import tiled_layers
from costprof.costmodel.validation import (
    calibrated,
    energy_figures,
    latency_figures,
    leave_one_out,
)
from costprof.profiler.dataset import read_measurements

METHOD = (
    "leave one token count out; ceilings and residual refitted without it; "
    "errors are of the median latency, in percent"
)


def fit_dataset(folder: Path, progress: Progress | None = None) -> FittedTable:
    """Fit the dataset in `folder`: its experts one by one, layers of a named routing together.

    Failed and unusable rows are counted and skipped, noisy ones weigh less. Deterministic: the same
    dataset gives the same table.

    Raises:
        DatasetError: no dataset, none of its rows usable, or rows of several devices.
    """
    tell = progress or (lambda stage, done, total: None)
    tell("reading", 0, 1)
    everything = read_measurements(folder)
    named = named_layers(everything)
    few = named.num_rows < LEAST_LAYERS
    layers = None if few else fit_layer_rows(folder, named, tell)
    if layers is not None:
        layers = _with_rest(layers, everything)
    if layers is not None and named.num_rows == everything.num_rows:
        return layers
    rows: list[dict[str, Any]] = everything.to_pylist()
    usable = [row for row in rows if is_usable(row)]
    if not any(row["op"] != "layer" for row in usable):
        if layers is not None:
            return layers
        if named.num_rows:
            raise DatasetError(
                f"{folder} has {named.num_rows} layers of a named routing, fewer than "
                f"{LEAST_LAYERS}, and no usable measurement of an expert",
                "no table was fitted",
                f"ingest more files, at least {LEAST_LAYERS} layers in all, or carry prices from "
                "another device with costprof fit --from",
            )
        raise DatasetError(
            f"none of the {len(rows)} rows of {folder} is a usable measurement of an expert",
            "no table was fitted",
            f"see costprof inspect {folder} for what failed",
        )
    experts = _fit_experts(folder, rows, usable, tell)
    return experts if layers is None else _joined(experts, layers)


def _with_rest(layers: FittedTable, everything: pa.Table) -> FittedTable:
    """Return `layers` with what was not used of the dataset's layers, counted and noted."""
    odd = unknown_routings(everything)
    notes = [f"{count} layers of routing {name} were not used" for name, count in odd.items()]
    source = layers.manifest.sources[0]
    source = dataclasses.replace(source, rows_failed=failed_layers(everything))
    manifest = dataclasses.replace(
        layers.manifest, sources=(source,), notes=(*layers.manifest.notes, *notes)
    )
    return dataclasses.replace(layers, manifest=manifest)


def _joined(experts: FittedTable, layers: FittedTable) -> FittedTable:
    rows = sorted_rows(pa.concat_tables([experts.rows, layers.rows]))
    used = experts.manifest.sources[0].rows_used + layers.manifest.sources[0].rows_used
    source = dataclasses.replace(experts.manifest.sources[0], rows_used=used)
    manifest = dataclasses.replace(
        experts.manifest,
        sources=(source,),
        validation={**experts.manifest.validation, **layers.manifest.validation},
        notes=(*experts.manifest.notes, *layers.manifest.notes),
    )
    return FittedTable(rows, manifest, layers.model)


def _fit_experts(
    folder: Path, rows: list[dict[str, Any]], usable: list[dict[str, Any]], tell: Progress
) -> FittedTable:
    experts = [row for row in usable if row["op"] != "layer"]
    described = describe(folder, experts)
    curves = measured_curves(experts)
    spec = spec_for(described.device, units=_threads(experts))

    tell("fitting", 0, 1)
    model = fit_latency(curves)
    folds = leave_one_out(curves, model, lambda done, total: tell("validating", done, total))
    model = calibrated(model, folds)
    tell("assembling", 0, 1)
    table = rows_table(
        row for curve in curves for row in curve_rows(curve, model, power_curve(curve, spec))
    )
    layers = [row for row in usable if row["op"] == "layer"]
    compositions, layer_figures = fit_compositions(table, layers)
    manifest = Manifest(
        device=described.device,
        software=described.software,
        moes=described.moes,
        sources=(
            SourceDataset(
                name=described.name,
                content_hash=dataset_hash(folder),
                rows_used=len(usable),
                rows_noisy=sum(row["status"] == "noisy" for row in usable),
                rows_failed=len(rows) - len(usable),
            ),
        ),
        compositions=compositions,
        validation={
            "method": METHOD,
            "latency": latency_figures(folds),
            "energy": energy_figures(folds, spec),
            "layers": layer_figures,
        },
        parameters=model.to_dict(),
        notes=(
            *described.notes,
            *mixed_conditions(usable),
            *_notes(curves, described.moes, compositions),
        ),
        tiled_layers=tiled_layers(layers),
    )
    return FittedTable(table, manifest)


def _threads(rows: list[dict[str, Any]]) -> int | None:
    """Return the number of CPU threads at work, where all rows agree."""
    counts = {row["num_threads"] for row in rows}
    return counts.pop() if len(counts) == 1 else None


def _notes(
    curves: list[MeasuredCurve], moes: tuple[MoeSpec, ...], compositions: dict[str, Composition]
) -> list[str]:
    notes = []
    sources = [known_energy(curve)[0] for curve in curves]
    without = sources.count(None)
    if without:
        notes.append(f"{without} curves had no energy; theirs comes from the power model")
    kinds = sorted({source or "modelled" for source in sources})
    if len(kinds) > 1:
        notes.append(f"energies are of several sources ({', '.join(kinds)}): compare with care")
    experts = {curve.class_id for curve in curves if curve.op == "expert"}
    priced = {class_id for moe in moes for class_id in moe.class_of_expert}
    notes += [
        f"class {class_id[:6]}: fewer than {MIN_LAYERS} layers measured in its cache state, "
        "experts are added up"
        for class_id in sorted(experts & priced - set(compositions))
    ]
    return notes
