"""Put public measurements into a dataset as a part of it: all of a file, or nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from costprof.core.errors import InputError
from costprof.core.files import replacing, writable_folder
from costprof.profiler.aiconfigurator import BACKEND, read_layers
from costprof.profiler.dataset import read_part
from costprof.profiler.parts import no_empty_folders, other_parts, part_name, refuse_other_parts

_SUFFIX = ".parquet"


@dataclass(frozen=True, slots=True)
class PublicSummary:
    """What one file gave: of its `rows`, `measurements` were written, of `classes` classes.

    `repeated` rows measured what another did: of these the median is kept. `skipped` counts rows
    that cannot be used, by reason. `with_energy` of the rows written have an energy,
    `energy_trusted` of those a window of power that was long enough.
    """

    source: str
    part: str
    device: str
    frameworks: list[str]
    rows: int
    measurements: int
    classes: int
    repeated: int
    with_energy: int
    energy_trusted: int
    skipped: dict[str, int]


def ingest_public_file(path: Path, out_dir: Path, *, force: bool = False) -> PublicSummary:
    """Ingest one Parquet file into the dataset `out_dir`; the same file again replaces itself.

    Args:
        path: Layer measurements as aiconfigurator publishes them.
        out_dir: Dataset folder; made if need be.
        force: Replace the part of another file that had the same name.

    Raises:
        InputError: no such file, an unknown suffix, a folder that cannot be written, or the
            dataset holds a sweep of another device, another file of this name (and `force` is off),
            or the same measurements from another file.
        ExportError: as `read_layers`.
        DatasetError: the dataset has a damaged part.
    """
    if not path.is_file():
        raise InputError(f"{path} is not a file", "it was not ingested", "check the path")
    source = path.name
    if path.suffix.lower() != _SUFFIX:
        raise InputError(
            f"{source} does not end in {_SUFFIX}",
            "it was not ingested",
            "give the Parquet file as it was published",
        )
    with no_empty_folders(out_dir):
        writable_folder(out_dir)
        part = part_name(source, path)
        if not force:
            refuse_other_parts(out_dir, source, part)
        replaced = other_parts(out_dir, source, part)
        layers = read_layers(path, run_id=part)
        target = out_dir / "measurements" / f"{part}{_SUFFIX}"
        _refuse_mixture(layers.table, layers.device, source, out_dir, {target, *replaced})
        with replacing(target) as temporary:
            pq.write_table(layers.table, temporary, compression="zstd")
        for stale in replaced:
            stale.unlink()
    return PublicSummary(
        source=source,
        part=part,
        device=layers.device,
        frameworks=sorted(pc.unique(layers.table["framework"]).to_pylist()),
        rows=layers.rows,
        measurements=layers.table.num_rows,
        classes=len(pc.unique(layers.table["class_id"])),
        repeated=layers.repeated,
        with_energy=layers.table.num_rows - layers.table["energy_mj"].null_count,
        energy_trusted=pc.sum(layers.table["energy_trusted"]).as_py() or 0,
        skipped=layers.skipped,
    )


def _refuse_mixture(
    table: pa.Table, device: str, source: str, folder: Path, replaced: set[Path]
) -> None:
    """Check that `folder` keeps no sweep of another device and measured none of the same."""
    for part in sorted((folder / "measurements").glob(f"*{_SUFFIX}")):
        if part in replaced:
            continue
        held = read_part(part)
        swept = held.filter(pc.not_equal(held["backend"], BACKEND))
        others = sorted(set(pc.unique(swept["device_name"]).to_pylist()) - {device, None})
        if others:
            raise InputError(
                f"{folder} holds a sweep of {others[0]}, {source} is of {device}",
                "only public measurements of several devices may share a dataset; it was not "
                "ingested",
                "give another folder as --out",
            )
        held = held.filter(pc.equal(held["device_name"], device))
        same = pc.sum(pc.is_in(table["scenario_id"], held["scenario_id"])).as_py() or 0
        if same:
            raise InputError(
                f"{same} of the measurements in {source} are in {folder} already, from {part.name}",
                "they would count twice; it was not ingested",
                "delete that part, or give another folder as --out",
            )
