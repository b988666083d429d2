"""Read the trials of a sweep that waited for the file of a wall meter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from costprof.core.errors import InputError
from costprof.profiler.energy.meter import read_meter
from costprof.profiler.energy.result import EnergyResult
from costprof.profiler.energy.store import Trials, merge_energy, read_trials, write_trials
from costprof.profiler.energy.trial import METER, read_by_meter


@dataclass(frozen=True, slots=True)
class MeterSummary:
    """What a wall meter's file gave: trials by status, trials it has no reading of."""

    source: str
    statuses: dict[str, int]
    uncovered: int
    results: dict[str, EnergyResult]
    reasons: tuple[str, ...]


def ingest_meter(path: Path, folder: Path) -> MeterSummary:
    """Read the trials in the dataset `folder` that wait for a wall meter by the CSV `path`.

    Trials the file has no reading of stay as they are; a file can be taken again.

    Raises:
        InputError: the file is at fault, or fits no trial.
        DatasetError: the trials cannot be read.
    """
    meter = read_meter(path)
    trials = read_trials(folder)
    statuses: dict[str, int] = {}
    reasons: list[str] = []
    changed: Trials = {}
    uncovered = 0
    for scenario_id, rows in trials.items():
        for row in rows:
            if row["source"] != METER or row["status"] == "failed":
                continue
            found = read_by_meter(folder, row, meter)
            if found is None:
                uncovered += 1
                continue
            row |= found
            changed[scenario_id] = rows
            statuses[row["status"]] = statuses.get(row["status"], 0) + 1
            if row["reason"]:
                reasons.append(f"{scenario_id}, trial {row['trial']}: {row['reason']}")
    if not changed:
        raise InputError(
            f"{path.name} has no reading during any of the {uncovered} trials in {folder} "
            "that wait for a wall meter",
            "nothing was changed",
            "log the meter while costprof sweep --energy N --energy-meter runs, in Unix time",
        )
    for scenario_id, rows in changed.items():
        write_trials(folder, scenario_id, rows)
    merged = merge_energy(folder)
    return MeterSummary(
        source=path.name,
        statuses=statuses,
        uncovered=uncovered,
        results={name: merged[name] for name in changed if name in merged},
        reasons=tuple(reasons),
    )
