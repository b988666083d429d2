"""What a sweep says beside its rows: device, software and the MoEs it was made for."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costprof.core.device import DeviceFingerprint
from costprof.core.errors import DatasetError
from costprof.costmodel.manifest import MoeSpec

_CONDITIONS = {
    "num_threads": "thread counts",
    "power_limit_w": "power limits in W",
    "driver_version": "drivers",
}


@dataclass(frozen=True, slots=True)
class Description:
    """`sweep.json`, read, with `notes` on what had to be made up."""

    name: str
    device: DeviceFingerprint
    software: dict[str, str]
    moes: tuple[MoeSpec, ...]
    notes: tuple[str, ...]


def describe(folder: Path, rows: list[dict[str, Any]]) -> Description:
    """Return the description of the dataset in `folder`, whose usable expert rows are `rows`.

    An MoE with an expert of a class that has no usable row cannot be priced and is left out. Where
    none remains, one is made up with one expert for each class measured as a whole; where only
    parts of experts were measured, the table has rows but no MoE.

    Raises:
        DatasetError: rows of several devices, or a damaged `sweep.json`.
    """
    devices = sorted({str(row["device_name"]) for row in rows})
    if len(devices) > 1:
        raise DatasetError(
            f"{folder} was measured on {len(devices)} devices ({', '.join(devices)})",
            "one table prices one device; none was fitted",
            "keep one dataset a device",
        )
    values = _read(folder)
    usable = sorted({row["class_id"] for row in rows if row["op"] in ("expert", "attention")})
    notes: list[str] = []
    moes = []
    try:
        for moe in values.get("moes", []):
            spec = MoeSpec(
                name=moe["name"], top_k=moe["top_k"], class_of_expert=tuple(moe["class_of_expert"])
            )
            missing = set(spec.class_of_expert) - set(usable)
            if missing:
                notes.append(
                    f"{spec.name} left out: {len(missing)} of its classes have no usable row"
                )
            else:
                moes.append(spec)
        device = (
            DeviceFingerprint(**values["device"]) if "device" in values else _device_of(rows[0])
        )
        software = {str(name): str(version) for name, version in values.get("software", {}).items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, error) from error
    if not moes and not usable:
        what = "whole layers" if any(row["op"] == "layer" for row in rows) else "parts of experts"
        notes.append(f"only {what} were measured: the table names no MoE")
    elif not moes:
        experts = tuple(sorted({row["class_id"] for row in rows if row["op"] == "expert"}))
        moes = [MoeSpec(name="measured", top_k=1, class_of_expert=experts or tuple(usable))]
        notes.append("no MoE named by the sweep: one expert for each class measured")
    return Description(
        name=str(values.get("name", folder.resolve().name)),
        device=device,
        software={**(software or _software_of(rows[0])), **_threads_of(rows)},
        moes=tuple(moes),
        notes=tuple(notes),
    )


def mixed_conditions(rows: list[dict[str, Any]]) -> list[str]:
    """Return a note for each condition that should be one in a table, and is not in `rows`."""
    notes = []
    for column, name in _CONDITIONS.items():
        values = {row[column] for row in rows} - {None, ""}
        if len(values) > 1:
            shown = ", ".join(str(value) for value in sorted(values))
            notes.append(f"measured under several {name} ({shown}): prices mix them")
    return notes


def dataset_hash(folder: Path) -> str:
    """Return a hash over the parts of `measurements/` in `folder`."""
    digest = hashlib.sha256()
    for part in sorted((folder / "measurements").glob("*.parquet")):
        digest.update(part.name.encode() + b"\0")
        digest.update(hashlib.sha256(part.read_bytes()).digest())
    return digest.hexdigest()


def _read(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from error
    if not isinstance(values, dict):
        raise _damaged(folder, TypeError("no object"))
    return values


def _device_of(row: Mapping[str, Any]) -> DeviceFingerprint:
    return DeviceFingerprint(
        kind=row["device_kind"],
        name=row["device_name"],
        units=row["device_units"] or 0,
        driver=row["driver_version"] or "",
        power_limit_w=row["power_limit_w"] or 0.0,
    )


def _threads_of(rows: list[dict[str, Any]]) -> dict[str, str]:
    """The CPU threads most rows were measured with; a CPU's prices hold for that many."""
    known = [row["num_threads"] for row in rows if row["num_threads"] is not None]
    return {"threads": str(statistics.mode(known))} if known else {}


def _software_of(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: row[f"{name}_version"] or "" for name in ("costprof", "python", "torch", "triton")
    }


def _damaged(folder: Path, error: Exception) -> DatasetError:
    return DatasetError(
        f"{folder / 'sweep.json'} cannot be read ({type(error).__name__})",
        "the dataset was not fitted",
        "run the sweep again with --resume, which writes it anew",
    )
