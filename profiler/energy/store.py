"""The folder `energy/` of a dataset, one part a scenario, and its way into `measurements/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from costprof.core.errors import DatasetError
from costprof.core.files import replacing
from costprof.profiler.dataset import read_part, write_measurements
from costprof.profiler.energy.result import (
    MEASURED_COLUMNS,
    SOURCES,
    EnergyResult,
    energy_result,
)
from costprof.profiler.schema import ENERGY

FOLDER = "energy"

Trials = dict[str, list[dict[str, Any]]]
"""Rows of `energy/` by scenario id, each list in order of trial."""


def write_trials(folder: Path, scenario_id: str, rows: list[dict[str, Any]]) -> None:
    """Write all trials of one scenario, replacing its earlier part atomically."""
    with replacing(folder / FOLDER / f"{scenario_id}.parquet") as path:
        pq.write_table(pa.Table.from_pylist(rows, schema=ENERGY), path, compression="zstd")


def read_trials(folder: Path) -> Trials:
    """Return the trials in the dataset `folder`; none if it has no energy.

    Raises:
        DatasetError: a part is damaged or of another schema.
    """
    trials: Trials = {}
    for part in sorted((folder / FOLDER).glob("*.parquet")):
        try:
            table = pq.read_table(part)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(part, str(error).splitlines()[0]) from error
        if not table.schema.equals(ENERGY):
            raise _unreadable(part, "it has other columns than this version of costprof writes")
        for row in table.to_pylist():
            trials.setdefault(row["scenario_id"], []).append(row)
    return trials


def results(trials: Trials) -> dict[str, EnergyResult]:
    """Return the energy of each scenario that has enough accepted trials."""
    found = {name: energy_result(rows) for name, rows in trials.items()}
    return {name: result for name, result in found.items() if result is not None}


def merge_energy(folder: Path) -> dict[str, EnergyResult]:
    """Put measured energies into the rows of `measurements/`, in place of modelled ones.

    A row whose measured energy has lost its trials has none afterwards: a fit then models it.
    `temp_rise_c` stays modelled. Doing it again changes nothing.
    """
    measured = results(read_trials(folder))
    for part in sorted((folder / "measurements").glob("*.parquet")):
        rows = read_part(part).to_pylist()
        changed = False
        for row in rows:
            result = measured.get(row["scenario_id"])
            if result is not None and row["latency_us_p50"]:
                row |= result.columns(row["latency_us_p50"])
            elif row["energy_source"] in SOURCES:
                row |= dict.fromkeys(MEASURED_COLUMNS)
            else:
                continue
            changed = True
        if changed:
            write_measurements(folder, part.stem, rows)
    return measured


def _unreadable(part: Path, why: str) -> DatasetError:
    return DatasetError(
        f"{part} cannot be read ({why})",
        "the energy trials cannot be used",
        "delete that file and measure again with --resume",
    )
