"""From the layers of a measured device, and few of another or none, to a table of the other."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from costprof.core.device import DeviceFingerprint
from costprof.core.errors import DatasetError, InputError
from costprof.costmodel.description import Description
from costprof.costmodel.devices import DeviceSpec, known_spec, known_spec_name, named_device
from costprof.costmodel.evaluation.figures import figures_of
from costprof.costmodel.evaluation.transfer import TransferTrial
from costprof.costmodel.fit_layers import LEAST_LAYERS, describe_layers, source_of_layers
from costprof.costmodel.fitted import FittedTable, Progress
from costprof.costmodel.grouped.carry import Source, distance
from costprof.costmodel.grouped.dataset import measured_layers, named_layers
from costprof.costmodel.grouped.fit import fit_grouped
from costprof.costmodel.grouped.fit_transfer import fit_transfer
from costprof.costmodel.grouped.model import Measured
from costprof.costmodel.grouped.price import LayerPrices
from costprof.costmodel.grouped.price_transfer import price_transferred
from costprof.costmodel.grouped.rows import measured_rows, priced_rows
from costprof.costmodel.grouped.serialise_transfer import to_bytes
from costprof.costmodel.manifest import Manifest
from costprof.costmodel.rows import sorted_rows
from costprof.profiler.dataset import read_measurements

METHOD = (
    "layers of the target left out of the correction, a fifth at a time; the source and what is "
    "carried from it have not seen the target"
)
_NOTHING = "no table was fitted"


@dataclass(frozen=True, slots=True)
class _Target:
    """The device to price, and what was measured of it: no `rows` where nothing was."""

    device: DeviceFingerprint
    spec: DeviceSpec
    folder: Path | None = None
    rows: pa.Table | None = None
    described: Description | None = None


def fit_transferred(
    source: Path,
    target: Path | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> FittedTable:
    """Fit the dataset in `source` and carry its layers to another device.

    That device is the one of the layers in `target`, or the one called `device`
    (`devices.named_device`); given both, `device` chooses among several in `target`. The rows are
    the source's layers, tier `transferred`, and those of `target`, tier `measured`; the model
    beside them prices any layer. Deterministic: the same datasets give the same table.

    Raises:
        DatasetError: no dataset, too few layers in it, or layers of several devices.
        InputError: no device is named, its constants are unknown, or it is the source's.
    """
    tell = progress or (lambda stage, done, total: None)
    tell("reading", 0, 1)
    source_rows = named_layers(read_measurements(source))
    if source_rows.num_rows < LEAST_LAYERS:
        raise DatasetError(
            f"{source} has {source_rows.num_rows} layers of a named routing, fewer than "
            f"{LEAST_LAYERS}",
            f"there is nothing to carry to another device; {_NOTHING}",
            "layers come in with costprof ingest --format aiconfigurator",
        )
    described = describe_layers(source, source_rows)
    source_spec = known_spec(described.device)
    wanted = _target(target, device)
    if described.device.name == wanted.device.name or source_spec.name == wanted.spec.name:
        raise InputError(
            f"the layers of {source} were measured on {described.device.name}, and so is the table "
            "to be",
            f"there is nothing to carry to another device; {_NOTHING}",
            f"use costprof fit {source}, or name another --device",
        )
    measured = measured_layers(source_rows)
    fitted = fit_grouped(measured, source_spec, tell)
    carrier = Source(fitted.model, source_spec, measured)
    few = None if wanted.rows is None else measured_layers(wanted.rows)
    left_out: dict[str, Any] = {}
    if few is not None:
        tell("validating", 0, 1)
        frame = TransferTrial.of(carrier, wanted.spec, few).left_out()
        left_out = {} if frame is None else figures_of(frame)
    tell("correcting", 0, 1)
    model = fit_transfer(carrier, wanted.spec, few)
    tell("pricing", 0, 1)
    prices = price_transferred(measured.points, model, few)
    tell("assembling", 0, 1)
    others = prices.tier != "measured"
    rows = priced_rows(
        source_rows.filter(pa.array(others)),
        measured.points.take(others),
        LayerPrices(prices.prediction.take(others), prices.tier[others]),
        wanted.spec,
    )
    sources = [source_of_layers(source, source_rows, described.name)]
    if few is not None and wanted.rows is not None and wanted.folder and wanted.described:
        own = measured_rows(wanted.rows, few, fitted.model, wanted.spec)
        rows = pa.concat_tables([rows, own])
        name = wanted.described.name
        sources.append(source_of_layers(wanted.folder, wanted.rows, name))
    low, _, high = (values[others] for values in prices.prediction.latency_us)
    manifest = Manifest(
        device=wanted.device,
        software=described.software,
        moes=(),
        sources=tuple(sources),
        validation={
            "transfer": {
                "method": METHOD,
                "source_device": described.device.name,
                "target_device": wanted.device.name,
                "distance": distance(source_spec, wanted.spec),
                "points": 0 if few is None else len(few.points),
                "left_out": left_out,
                "half_width_90": _percent(low, high),
                "source": fitted.figures,
            }
        },
        notes=(*_notes(described, wanted, measured, few), *described.notes),
    )
    return FittedTable(sorted_rows(rows), manifest, to_bytes(model))


def _target(folder: Path | None, device: str | None) -> _Target:
    """Return the device to price, its name and power limit those of its rows where there are."""
    named = None if device is None else named_device(device)
    if folder is None:
        if named is None:
            raise InputError(
                "neither a dataset of the device to price nor its name is given",
                _NOTHING,
                "name one with --device, H200 say, or give a dataset of a few of its layers",
            )
        return _Target(*named)
    rows = named_layers(read_measurements(folder))
    if named is not None:
        rows = _of_device(folder, rows, *named)
    if not rows.num_rows:
        raise DatasetError(
            f"{folder} has no layer of a named routing",
            _NOTHING,
            "leave it out and name the device with --device",
        )
    described = describe_layers(folder, rows)
    spec = known_spec(described.device) if named is None else named[1]
    limit_w = described.device.power_limit_w
    if limit_w > 0.0:
        spec = dataclasses.replace(spec, power_limit_w=limit_w)
    else:
        limited = dataclasses.replace(described.device, power_limit_w=spec.power_limit_w)
        described = dataclasses.replace(described, device=limited)
    return _Target(described.device, spec, folder, rows, described)


def _of_device(
    folder: Path, rows: pa.Table, device: DeviceFingerprint, spec: DeviceSpec
) -> pa.Table:
    """Return those `rows` of `device`; a file of the user's own describes whatever they are of."""
    names = sorted(set(pc.unique(rows["device_name"]).to_pylist()))
    own_file = known_spec_name(device.name) is None
    if own_file and len(names) == 1:
        return rows
    wanted = [name for name in names if name == device.name or known_spec_name(name) == spec.name]
    if names and not wanted:
        raise DatasetError(
            f"{folder} has layers of {', '.join(names)}, none of {device.name}",
            _NOTHING,
            "leave out the dataset, or --device",
        )
    return rows.filter(pc.is_in(rows["device_name"], pa.array(wanted, pa.string())))


def _notes(
    source: Description, target: _Target, measured: Measured, few: Measured | None
) -> list[str]:
    device = target.device.name
    notes = [
        f"prices of {device} are carried from {len(measured.points)} layers measured on "
        f"{source.device.name} ({source.name}) by what the datasheets of both say",
    ]
    if few is None:
        notes.append(f"no layer was measured on {device}: nothing tells how far the prices are off")
    else:
        notes.append(
            f"corrected by {len(few.points)} layers measured on {device}; rows of tier measured "
            "are those, all others were not measured there"
        )
    if np.isfinite(measured.power_w).any():
        notes.append(f"power and energy of transferred rows are modelled from {source.device.name}")
    else:
        notes.append(f"{source.name} knows no power: transferred rows have no energy")
    return notes


def _percent(low: Any, high: Any) -> float | None:
    """Return the mean half width of intervals in percent, None of none."""
    if not len(low):
        return None
    return float(100.0 * np.expm1(0.5 * np.log(high / low)).mean())
