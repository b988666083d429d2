"""From a dataset to a cost table: roofline × residual, energy, layers, and how good they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from costprof.core.errors import DatasetError
from costprof.costmodel.assemble import curve_rows
from costprof.costmodel.composition import MIN_LAYERS, fit_compositions
from costprof.costmodel.description import dataset_hash, describe, mixed_conditions
from costprof.costmodel.devices import spec_for
from costprof.costmodel.energy import known_energy, power_curve
from costprof.costmodel.manifest import Composition, Manifest, MoeSpec, SourceDataset
from costprof.costmodel.measurements import MeasuredCurve, is_usable, measured_curves
from costprof.costmodel.residual import fit_latency
from costprof.costmodel.rows import rows_table
from costprof.costmodel.tiled_layers import tiled_layers
from costprof.costmodel.validation import (
    calibrated,
    energy_figures,
    latency_figures,
    leave_one_out,
)
from costprof.profiler.dataset import read_measurements

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, the steps done and their number."""

METHOD = (
    "leave one token count out; ceilings and residual refitted without it; "
    "errors are of the median latency, in percent"
)


@dataclass(frozen=True, slots=True)
class FittedTable:
    """Rows of `TABLE_SCHEMA` and their manifest, ready for `write_table`."""

    rows: pa.Table
    manifest: Manifest


def fit_dataset(folder: Path, progress: Progress | None = None) -> FittedTable:
    """Fit the dataset in `folder`.

    Failed and unusable rows are counted and skipped, noisy ones weigh less. Deterministic: the same
    dataset gives the same table.

    Raises:
        DatasetError: no dataset, none of its rows usable, or rows of several devices.
    """
    tell = progress or (lambda stage, done, total: None)
    tell("reading", 0, 1)
    rows: list[dict[str, Any]] = read_measurements(folder).to_pylist()
    usable = [row for row in rows if is_usable(row)]
    experts = [row for row in usable if row["op"] != "layer"]
    if not experts:
        raise DatasetError(
            f"none of the {len(rows)} rows of {folder} is a usable measurement of an expert",
            "no table was fitted",
            f"see costprof inspect {folder} for what failed",
        )
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
