"""A transferred model as bytes: plain arrays and plain JSON, nothing that has to be unpickled."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from costprof.core.errors import TableError
from costprof.costmodel.devices import DeviceSpec
from costprof.costmodel.grouped import serialise
from costprof.costmodel.grouped.carry import TRAITS, Source
from costprof.costmodel.grouped.model import Measured
from costprof.costmodel.grouped.points import LayerPoints
from costprof.costmodel.grouped.transfer import Correction, TransferModel, TransferScales

Arrays = dict[str, npt.NDArray[Any]]

FORMAT = "transfer 1"
_JSON, _SOURCE = "json", "source"
_COMPRESSION = 6


def is_transfer(data: bytes) -> bool:
    """Return whether `data`, the model of a table, was written by `to_bytes` of this module."""
    try:
        arrays = load(zlib.decompress(data))
        return bool(json.loads(arrays[_JSON].tobytes())["format"] == FORMAT)
    except (zlib.error, SafetensorError, KeyError, ValueError, TypeError):
        return False


def to_bytes(model: TransferModel) -> bytes:
    """Return `model` as bytes, its source's model and measured layers included."""
    source, correction = model.source, model.correction
    arrays: Arrays = {
        _SOURCE: np.frombuffer(serialise.to_bytes(source.model), dtype=np.uint8),
        "log_scales": correction.scales.to_logs(),
        "strangeness": correction.strangeness,
        "traits": correction.traits,
        "residual": correction.residual,
        "noise": correction.noise,
    }
    texts = {"method": correction.method.tolist()}
    if source.measured is not None:
        _write_measured(source.measured, arrays, texts)
    values = {
        "format": FORMAT,
        "traits": TRAITS,
        "source_spec": dataclasses.asdict(source.spec),
        "target_spec": dataclasses.asdict(model.target),
        "factor": correction.factor,
        "power_shift": correction.power_shift,
        "texts": texts,
    }
    text = json.dumps(values, sort_keys=True, allow_nan=False).encode()
    arrays[_JSON] = np.frombuffer(text, dtype=np.uint8)
    return zlib.compress(save(arrays), _COMPRESSION)


def from_bytes(data: bytes) -> TransferModel:
    """Read what `to_bytes` wrote.

    Raises:
        TableError: the bytes are no such model, or one of another version's traits.
    """
    try:
        arrays = load(zlib.decompress(data))
        values = json.loads(arrays[_JSON].tobytes())
        if values["format"] != FORMAT or values["traits"] != list(TRAITS):
            raise TableError(
                "the table's transferred model is of another version of costprof",
                "layers were not priced",
                "fit it again from its source with this version",
            )
        source = Source(
            serialise.from_bytes(arrays[_SOURCE].tobytes()),
            DeviceSpec(**values["source_spec"]),
            _read_measured(arrays, values["texts"]),
        )
        correction = Correction(
            scales=TransferScales.of_values(np.exp(arrays["log_scales"])),
            method=np.array(values["texts"]["method"], dtype=str),
            strangeness=arrays["strangeness"],
            traits=arrays["traits"],
            residual=arrays["residual"],
            noise=arrays["noise"],
            factor=float(values["factor"]),
            power_shift=float(values["power_shift"]),
        )
        return TransferModel(source, DeviceSpec(**values["target_spec"]), correction)
    except (zlib.error, SafetensorError, KeyError, ValueError, TypeError, IndexError) as error:
        raise TableError(
            f"the table's transferred model cannot be read ({type(error).__name__})",
            "layers were not priced",
            "copy the table again from its source or fit it anew",
        ) from error


def _write_measured(measured: Measured, arrays: Arrays, texts: dict[str, list[str]]) -> None:
    """Add the columns; of texts the distinct ones and, for each layer, which."""
    for field in dataclasses.fields(LayerPoints):
        column = getattr(measured.points, field.name)
        name = f"layers.{field.name}"
        if column.dtype.kind == "U":
            known, codes = np.unique(column, return_inverse=True)
            texts[name], arrays[name] = known.tolist(), codes.astype(np.int32)
        else:
            arrays[name] = column
    arrays["layers.latency_us"], arrays["layers.power_w"] = measured.latency_us, measured.power_w
    if measured.power_trusted is not None:
        arrays["layers.power_trusted"] = measured.power_trusted.astype(np.uint8)


def _read_measured(arrays: Arrays, texts: Mapping[str, list[str]]) -> Measured | None:
    if "layers.latency_us" not in arrays:
        return None
    columns: Arrays = {}
    for field in dataclasses.fields(LayerPoints):
        name = f"layers.{field.name}"
        columns[field.name] = np.array(texts[name])[arrays[name]] if name in texts else arrays[name]
    trusted = arrays.get("layers.power_trusted")
    return Measured(
        LayerPoints(**columns),
        arrays["layers.latency_us"],
        arrays["layers.power_w"],
        None if trusted is None else trusted.astype(bool),
    )
