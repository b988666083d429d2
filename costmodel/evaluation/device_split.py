"""The split `device:FROM,TO`: one device's layers priced from another's, few given or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from costprof.core.device import DeviceFingerprint
from costprof.core.errors import InputError
from costprof.costmodel.devices import known_spec
from costprof.costmodel.evaluation.frame import check_enough, layer_spec
from costprof.costmodel.evaluation.transfer import TransferTrial
from costprof.costmodel.grouped.carry import Source
from costprof.costmodel.grouped.dataset import measured_layers, named_layers
from costprof.costmodel.grouped.fit import fit_grouped
from costprof.profiler.dataset import read_measurements

Progress = Callable[[str, int, int], None]

KIND = "device"
GIVEN = 200
"""Layers of the target that are chosen and given, of fewer than twice as many the half."""


def is_device_split(split: str) -> bool:
    """Return whether `split` is of this kind."""
    return split.partition(":")[0] == KIND


def transferred_layers(
    folders: Sequence[Path], split: str, *, seed: int = 0, progress: Progress | None = None
) -> dict[int, pa.Table]:
    """Return the frame of the target's layers by how many of them were chosen and given.

    `split` is `device:FROM,TO`, parts of the names of two devices measured in `folders`. Columns
    are those of `TransferTrial.frame`. `seed` draws the layers to choose from.

    Raises:
        InputError: the split names no two devices of the datasets, or one of unknown constants, or
            two datasets hold the same layer.
        DatasetError: no dataset, or the source has too few layers of a named routing.
    """
    tell = progress or (lambda stage, done, total: None)
    tell("reading", 0, 1)
    every = _layers_of(folders)
    source_rows, target_rows = _both(every, split)
    check_enough(source_rows, f"the source of {split}")
    source_spec, target_spec = layer_spec(source_rows), layer_spec(target_rows)
    measured = measured_layers(source_rows)
    source = Source(fit_grouped(measured, source_spec, tell).model, source_spec, measured)
    tell("carrying", 0, 1)
    trial = TransferTrial.of(source, target_spec, measured_layers(target_rows))
    frames = {}
    for given in (0, min(GIVEN, len(trial) // 2)):
        tell(f"pricing with {given} layers given", 0, 1)
        frames[given] = trial.frame(trial.chosen(given, seed=seed), f"{split} with {given}")
    return frames


def _layers_of(folders: Sequence[Path]) -> pa.Table:
    tables: list[pa.Table] = []
    held: set[tuple[str, str]] = set()
    for folder in folders:
        rows = named_layers(read_measurements(folder))
        own = set(
            zip(rows["device_name"].to_pylist(), rows["scenario_id"].to_pylist(), strict=True)
        )
        same = len(own & held)
        if same:
            raise InputError(
                f"{same} of the layers in {folder} are in a dataset named before it",
                "they would count twice; nothing was evaluated",
                "name each dataset once",
            )
        held |= own
        tables.append(rows)
    return pa.concat_tables(tables)


def _both(rows: pa.Table, split: str) -> tuple[pa.Table, pa.Table]:
    names = [name.strip() for name in split.partition(":")[2].split(",")]
    known = sorted(set(pc.unique(rows["device_name"]).to_pylist()))
    if len(names) != 2 or not all(names):
        raise _refused(split, "it names no two devices", known)
    found = []
    for name in names:
        hits = [each for each in known if name.lower() in each.lower()]
        if len(hits) != 1:
            fact = f"{name} could be {', '.join(hits)}" if hits else f"no layer is of {name}"
            raise _refused(split, fact, known)
        found.append(hits[0])
        known_spec(DeviceFingerprint(kind="gpu", name=hits[0]))
    if found[0] == found[1]:
        raise _refused(split, f"both names are of {found[0]}", known)
    source, target = (rows.filter(pc.equal(rows["device_name"], name)) for name in found)
    return source, target


def _refused(split: str, fact: str, known: list[str]) -> InputError:
    return InputError(
        f"split {split!r} cannot be made: {fact}",
        "nothing was evaluated",
        "use device:FROM,TO with parts of the names of two devices measured: "
        + (", ".join(known) or "there is none"),
    )
