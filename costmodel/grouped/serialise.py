"""The model of layers as bytes: plain arrays and plain JSON, nothing that has to be unpickled."""

from __future__ import annotations

import dataclasses
import json
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from costprof.core.errors import TableError
from costprof.costmodel.grouped.features import POWER_FEATURES, TIME_FEATURES
from costprof.costmodel.grouped.field import FieldScales
from costprof.costmodel.grouped.intervals import Calibration
from costprof.costmodel.grouped.model import GroupedModel, Part
from costprof.costmodel.grouped.power import PowerConstants
from costprof.costmodel.grouped.stage_time import StageConstants
from costprof.costmodel.grouped.trees import Trees

FORMAT = 2
_JSON = "json"
_COMPRESSION = 6


def to_bytes(model: GroupedModel) -> bytes:
    """Return `model` as bytes; the same model gives the same bytes."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, part in model.parts.items():
        arrays |= part.time.to_arrays(f"time.{name}")
        if part.power is not None:
            arrays |= part.power.to_arrays(f"power.{name}")
    values = {
        "format": FORMAT,
        "features": {"time": TIME_FEATURES, "power": POWER_FEATURES},
        "parts": {
            str(name): {
                "stages": {method: dataclasses.asdict(c) for method, c in part.stages.items()},
                "powers": {method: dataclasses.asdict(c) for method, c in part.powers.items()},
            }
            for name, part in model.parts.items()
        },
        "fold_of_shape": dict(model.fold_of_shape),
        "start": dataclasses.asdict(model.start),
        "start_power": dataclasses.asdict(model.start_power),
        "limit_w": model.limit_w,
        "use_trees": model.use_trees,
        "fields": model.fields,
        "power_between": model.power_between,
        "scales": [dataclasses.asdict(scales) for scales in model.scales],
        "latency_intervals": model.latency_intervals.to_list(),
        "energy_intervals": model.energy_intervals.to_list(),
    }
    text = json.dumps(values, sort_keys=True, allow_nan=False).encode()
    arrays[_JSON] = np.frombuffer(text, dtype=np.uint8)
    return zlib.compress(save(arrays), _COMPRESSION)


def from_bytes(data: bytes) -> GroupedModel:
    """Read what `to_bytes` wrote.

    Raises:
        TableError: the bytes are no such model, or one of another version's features.
    """
    try:
        arrays = load(zlib.decompress(data))
        values = json.loads(arrays[_JSON].tobytes())
        if values["format"] != FORMAT or values["features"] != {
            "time": list(TIME_FEATURES),
            "power": list(POWER_FEATURES),
        }:
            raise TableError(
                "the table's model of layers is of another version of costprof",
                "layers were not priced",
                "fit the dataset again with this version",
            )
        return GroupedModel(
            parts={int(name): _part(arrays, name, part) for name, part in values["parts"].items()},
            fold_of_shape={str(shape): int(f) for shape, f in values["fold_of_shape"].items()},
            start=StageConstants(**values["start"]),
            start_power=PowerConstants(**values["start_power"]),
            limit_w=float(values["limit_w"]),
            use_trees=bool(values["use_trees"]),
            fields=(float(values["fields"][0]), float(values["fields"][1])),
            power_between=float(values["power_between"]),
            scales=tuple(FieldScales(**scales) for scales in values["scales"]),  # type: ignore[arg-type]
            latency_intervals=Calibration.of_list(values["latency_intervals"]),
            energy_intervals=Calibration.of_list(values["energy_intervals"]),
        )
    except (zlib.error, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise TableError(
            f"the table's model of layers cannot be read ({type(error).__name__})",
            "layers were not priced",
            "copy the table again from its source or fit it anew",
        ) from error


def _part(arrays: dict[str, npt.NDArray[Any]], name: str, values: dict[str, Any]) -> Part:
    power = f"power.{name}"
    return Part(
        stages={method: StageConstants(**c) for method, c in values["stages"].items()},
        time=Trees.of_arrays(arrays, f"time.{name}"),
        powers={method: PowerConstants(**c) for method, c in values["powers"].items()},
        power=Trees.of_arrays(arrays, power) if f"{power}.roots" in arrays else None,
    )
