"""`costprof ingest --meter`: readings of a wall meter for the energy trials of a sweep."""

from __future__ import annotations

from pathlib import Path

from costprof.cli.console import print_json
from costprof.core.errors import InputError


def take_meter_files(files: list[Path], out: Path, *, as_json: bool) -> None:
    """Read each file and print what its trials gave.

    Raises:
        InputError: no dataset, or a file at fault; those before it are taken.
        DatasetError: the trials in `out` cannot be read.
    """
    from costprof.profiler.energy.meter_ingest import ingest_meter
    from costprof.profiler.journal import sweep_lock

    if not (out / "measurements").is_dir():
        raise InputError(
            f"{out} holds no sweep",
            "there are no trials a meter's readings could belong to",
            "first run: costprof sweep ... --energy N --energy-meter --out DIR",
        )
    with sweep_lock(out):
        taken = [ingest_meter(path, out) for path in files]
    if as_json:
        print_json(
            {
                "meters": [
                    {
                        "file": summary.source,
                        "trials": summary.statuses,
                        "uncovered": summary.uncovered,
                        "measured": {
                            name: {
                                "energy_active_mj": result.active_mj,
                                "low_mj": result.low_mj,
                                "high_mj": result.high_mj,
                                "cv": result.cv,
                                "trials": result.trials,
                            }
                            for name, result in summary.results.items()
                        },
                        "reasons": list(summary.reasons),
                    }
                    for summary in taken
                ]
            }
        )
        return
    for summary in taken:
        counts = ", ".join(f"{number} {name}" for name, number in sorted(summary.statuses.items()))
        left = f", {summary.uncovered} not covered" if summary.uncovered else ""
        print(
            f"{summary.source}: trials: {counts}{left}; energy of {len(summary.results)} scenarios "
            "measured (external_meter)"
        )
        for reason in summary.reasons:
            print(f"  {reason}")
