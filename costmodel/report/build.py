"""From a dataset to a report: what is in it decides which sections it has."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from costprof.core.errors import DatasetError, InputError
from costprof.costmodel.description import describe
from costprof.costmodel.devices import DeviceSpec, spec_for
from costprof.costmodel.evaluation.frame import held_out_layers
from costprof.costmodel.evaluation.origin import FrameOrigin
from costprof.costmodel.grouped.dataset import named_layers
from costprof.costmodel.grouped.fit import LEAST_LAYERS
from costprof.costmodel.measurements import is_usable
from costprof.costmodel.predict import Roofline
from costprof.costmodel.report.accuracy import accuracy_figures
from costprof.costmodel.report.experts import measured_experts
from costprof.costmodel.report.figure import Report, Section
from costprof.costmodel.report.joules import energy_figures
from costprof.costmodel.report.layer_section import layer_section
from costprof.costmodel.report.prediction import driver_figures
from costprof.costmodel.report.provenance import energy_kinds, provenance
from costprof.costmodel.report.speed import Ceiling, roofline, surface_by_choice
from costprof.profiler.dataset import read_measurements

Progress = Callable[[str, int, int], None]

_SPLITS = re.compile(r"token|shape|sparse:0?\.\d*[1-9]\d*|fewshot:[1-9]\d*")


def make_report(
    folder: Path,
    split: str,
    progress: Progress | None = None,
    *,
    held_out: Callable[..., pa.Table] = held_out_layers,
) -> Report:
    """Return the report of the dataset in `folder`; the same dataset gives the same report.

    `held_out` gives the frame of held-out layers, called as `held_out_layers` is.

    Raises:
        InputError: `split` is unknown, or the dataset cannot be split so.
        DatasetError: there is no dataset, or nothing in it can be used.
    """
    tell = progress or (lambda stage, done, total: None)
    check_split(split)
    tell("reading", 0, 1)
    table = read_measurements(folder)
    layers = named_layers(table)
    public = pc.and_(pc.equal(table["op"], "layer"), pc.is_null(table["counts"]))
    usable = [row for row in table.filter(pc.invert(public)).to_pylist() if is_usable(row)]
    experts = [row for row in usable if row["op"] != "layer"]
    if not experts and layers.num_rows < LEAST_LAYERS:
        raise DatasetError(
            f"{folder} has no usable expert and {layers.num_rows} whole layers of named routing",
            f"no report was made: it takes an expert, or {LEAST_LAYERS} layers",
            f"see costprof inspect {folder} for what failed",
        )
    if experts and layers.num_rows < LEAST_LAYERS and split != "token":
        raise InputError(
            f"--split {split} with a dataset of single experts",
            "no report was made",
            "use --split token, which leaves token counts out of each expert's curve",
        )
    first = [*experts, *layers.slice(0, 1).to_pylist()]
    described = describe(folder, first)
    spec = spec_for(described.device, units=_threads(experts))
    sections = []
    if experts:
        sections.append(_expert_section(usable, spec, described.device.name, tell))
    if layers.num_rows >= LEAST_LAYERS:
        frame = held_out(folder, split, progress=tell)
        origin = FrameOrigin.of_rows(described.name, layers)
        sections.append(layer_section(frame, origin, spec))
    return Report(
        title=described.name,
        facts=_facts(table, len(usable) + layers.num_rows, described.device.name, spec),
        provenance=_provenance(table),
        sections=sections,
    )


def check_split(split: str) -> None:
    """Check that `split` is one this page can show.

    Raises:
        InputError: it is not.
    """
    if not _SPLITS.fullmatch(split):
        raise InputError(
            f"--split {split!r} is unknown",
            "no report was made",
            "use token, shape, sparse:F with the fraction F of rows kept, or fewshot:K",
        )


def _expert_section(
    rows: list[dict[str, Any]], spec: DeviceSpec, device: str, progress: Progress
) -> Section:
    progress("fitting", 0, 1)
    measured = measured_experts(rows, spec, progress)
    progress("drawing", 0, 1)
    calls, kinds = measured.calls, energy_kinds(row["energy_source"] for row in rows)
    errors = accuracy_figures(measured.held_out) if measured.held_out else []
    figures = [
        *errors,
        roofline(
            calls,
            _reached(measured.roofline),
            "ceilings this device was seen to reach, fitted to these measurements",
        ),
        surface_by_choice(calls),
        *energy_figures(calls, spec.power_limit_w, kinds),
        *driver_figures(calls, kinds, "modelled", device),
    ]
    intro = "Single experts, their parts, and the few layers a sweep measures beside them."
    if not errors:
        intro += " No curve has two points: nothing could be left out, so there are no errors."
    return Section("Experts", intro, figures)


def _reached(found: Roofline) -> list[Ceiling]:
    return [
        Ceiling(f"{kind.removesuffix('/none')}, {state} weights", peak, bandwidth)
        for kind, peak in sorted(found.peak_flops.items())
        for state, bandwidth in sorted(found.bytes_per_s.items())
    ]


def _facts(
    table: pa.Table, used: int, device: str, spec: DeviceSpec
) -> tuple[tuple[str, str], ...]:
    status = table["status"].to_pylist()
    noisy, failed = status.count("noisy"), len(status) - used
    return (
        ("Device", device),
        ("Rows", f"{used} used, {noisy} of them noisy; {failed} failed or unusable"),
        ("Software", _distinct(table, "framework")),
        ("Measured by", f"{_distinct(table, 'backend')} ({_distinct(table, 'timer')})"),
        ("Device constants", f"{spec.name}, power limit {spec.power_limit_w:.0f} W"),
    )


def _provenance(table: pa.Table) -> tuple[str, ...]:
    untrusted = pc.sum(pc.equal(table["energy_trusted"], False)).as_py()
    said = provenance(table["energy_source"].to_pylist(), untrusted=untrusted or 0)
    if table["temp_rise_c"].null_count < table.num_rows:
        said += ("Temperature rise: always modelled, by one resistance and one capacity.",)
    return said


def _distinct(table: pa.Table, name: str) -> str:
    return ", ".join(sorted(str(value) for value in pc.unique(table[name]).to_pylist() if value))


def _threads(rows: list[dict[str, Any]]) -> int | None:
    counts = {row["num_threads"] for row in rows}
    return counts.pop() if len(counts) == 1 else None
