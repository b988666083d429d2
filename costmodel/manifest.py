"""What a cost table says of itself: where it was measured, what it prices, how well it fits.

The manifest is JSON in the key-value metadata of the table's Parquet file, under `METADATA_KEY`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from costprof.core.device import DeviceFingerprint
from costprof.core.errors import TableError

SCHEMA_VERSION = 2
METADATA_KEY = b"costprof"
MODEL_KEY = b"costprof.model"
"""Where a fitted model stands beside the manifest, as base64 of bytes that are its own affair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeSpec:
    """One MoE layer the table prices: expert `e` belongs to class `class_of_expert[e]`."""

    name: str
    top_k: int
    class_of_expert: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceDataset:
    """A dataset the table was fitted from, and what became of its rows."""

    name: str
    content_hash: str
    rows_used: int = 0
    rows_noisy: int = 0
    rows_failed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """How experts of one class add up to a layer:

        layer_latency_us = base_us     + latency_scale · Σ_e latency_us(class, n_e)
        layer_energy_mj  = base_mj     + energy_scale  · Σ_e energy_mj(class, n_e)

    `fitted` is False for the neutral values (0 and 1) of a class no layer was measured of.
    `layers` counts the layer rows behind the fit; the errors are those of leaving one such row out
    (None where not known). `kernel` names the layer kernel that was measured.
    """

    base_us: float = 0.0
    latency_scale: float = 1.0
    base_mj: float = 0.0
    energy_scale: float = 1.0
    fitted: bool = False
    layers: int = 0
    kernel: str = ""
    latency_mape: float | None = None
    energy_mape: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TiledLayer:
    """A whole layer measured under tile configs at one token count; the best ones, fastest first.

    `class_fields` are those of the experts' class, `tokens` the layer's before the top-k copies.
    `configs` pairs each config with its measured median latency in µs; `tried` counts all measured.
    """

    class_fields: dict[str, Any]
    kernel: str
    cache_state: str
    experts: int
    top_k: int
    distribution: str
    tokens: int
    configs: tuple[tuple[dict[str, int], float], ...]
    tried: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything about a cost table but its rows.

    `device` and `software` are those of the measurement. `validation` holds cross-validated
    figures, `parameters` the fitted model (see `costprof.costmodel.predict`); both are plain JSON
    values. `compositions` maps the class id of an expert to how a layer of it composes.
    `content_hash` covers the rows, the model beside them and all other fields (see
    `costprof.costmodel.sealing`); it is empty until the table is written.
    """

    device: DeviceFingerprint
    moes: tuple[MoeSpec, ...]
    software: dict[str, str] = field(default_factory=dict)
    sources: tuple[SourceDataset, ...] = ()
    compositions: dict[str, Composition] = field(default_factory=dict)
    validation: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    tiled_layers: tuple[TiledLayer, ...] = ()
    schema_version: int = SCHEMA_VERSION
    content_hash: str = ""

    @property
    def threads(self) -> int | None:
        """CPU threads the measurement used, where that is known."""
        text = self.software.get("threads", "")
        return int(text) if text.isdecimal() else None

    def moe(self, name: str | None = None) -> MoeSpec:
        """Return the MoE called `name`, or the only one where `name` is None.

        Raises:
            TableError: there is no such MoE, or several and none was named.
        """
        known = ", ".join(moe.name for moe in self.moes) or "none"
        if name is None:
            if len(self.moes) == 1:
                return self.moes[0]
            raise TableError(
                f"the table prices {len(self.moes)} MoEs ({known}) and none was named",
                "no MoE was chosen",
                "name one of them with moe=" if self.moes else "fit a dataset of a sweep",
            )
        for moe in self.moes:
            if moe.name == name:
                return moe
        raise TableError(
            f"the table has no MoE {name!r}", "nothing can be priced", f"it prices: {known}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values (tuples as lists)."""
        plain: dict[str, Any] = json.loads(self.to_json())
        return plain

    def to_json(self) -> str:
        """Return the manifest as canonical JSON."""
        plain = dataclasses.asdict(self)
        return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Manifest:
        """Read what `to_dict` returned, in the schema version at hand.

        Raises:
            TableError: the values are no manifest.
        """
        try:
            return _from_values(values)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise damaged_manifest(error) from error


def manifest_values(text: str | bytes) -> dict[str, Any]:
    """Return the JSON object of a stored manifest, of this schema version or an earlier one.

    Raises:
        TableError: the text is no manifest, or one of a later version.
    """
    try:
        values: dict[str, Any] = json.loads(text)
        version = values["schema_version"]
        if type(version) is not int or version < 1:
            raise ValueError(version)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged_manifest(error) from error
    if version > SCHEMA_VERSION:
        raise TableError(
            f"the table has schema version {version}, this costprof reads up to {SCHEMA_VERSION}",
            "it was not loaded",
            "update costprof, or fit its dataset again with this version",
        )
    return values


def _from_values(values: dict[str, Any]) -> Manifest:
    moes = [
        MoeSpec(**{**moe, "class_of_expert": tuple(moe["class_of_expert"])})
        for moe in values["moes"]
    ]
    compositions = values["compositions"].items()
    return Manifest(
        **{
            **values,
            "device": DeviceFingerprint(**values["device"]),
            "moes": tuple(moes),
            "sources": tuple(SourceDataset(**source) for source in values["sources"]),
            "compositions": {key: Composition(**value) for key, value in compositions},
            "notes": tuple(values["notes"]),
            "tiled_layers": tuple(_tiled_layer(each) for each in values["tiled_layers"]),
        }
    )


def _tiled_layer(values: dict[str, Any]) -> TiledLayer:
    configs = tuple((dict(config), float(us)) for config, us in values["configs"])
    return TiledLayer(**{**values, "configs": configs})


def damaged_manifest(error: Exception) -> TableError:
    """Return what to raise where a manifest cannot be read because of `error`."""
    return TableError(
        f"the table's manifest cannot be read ({type(error).__name__})",
        "the table was not loaded",
        "copy it again from its source or fit it anew",
    )
