"""What a frame of held-out layers says of the dataset it is from, in its schema's metadata."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

ORIGIN_KEY = b"costprof.frame"


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameOrigin:
    """A dataset of layers.

    Attributes:
        dataset: Name of its folder.
        device: Name of the device measured.
        layers: Rows that could be used, held out or not.
        dtypes: Types of the activations.
        energy_sources: How energy became known; empty where it did not.
    """

    dataset: str
    device: str
    layers: int
    dtypes: tuple[str, ...]
    energy_sources: tuple[str, ...]

    @classmethod
    def of_rows(cls, dataset: str, rows: pa.Table) -> FrameOrigin:
        """Return the origin of frames made from the `named_layers` `rows` of a dataset."""
        return cls(
            dataset=dataset,
            device=str(rows["device_name"][0].as_py()),
            layers=rows.num_rows,
            dtypes=_distinct(rows, "dtype"),
            energy_sources=_distinct(rows, "energy_source"),
        )

    @classmethod
    def of_frame(cls, frame: pa.Table) -> FrameOrigin | None:
        """Return what `attached` wrote; None where nothing of the kind is there."""
        try:
            values = json.loads((frame.schema.metadata or {})[ORIGIN_KEY])
            return cls(
                dataset=str(values["dataset"]),
                device=str(values["device"]),
                layers=int(values["layers"]),
                dtypes=tuple(map(str, values["dtypes"])),
                energy_sources=tuple(map(str, values["energy_sources"])),
            )
        except (KeyError, TypeError, ValueError):
            return None

    def attached(self, frame: pa.Table) -> pa.Table:
        """Return `frame` with this origin in its metadata."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True).encode()
        return frame.replace_schema_metadata({**(frame.schema.metadata or {}), ORIGIN_KEY: text})


def _distinct(rows: pa.Table, name: str) -> tuple[str, ...]:
    return tuple(sorted(str(value) for value in pc.unique(rows[name]).to_pylist() if value))
