"""`costprof table calibrate`: a table corrected by a few observations of the machine it serves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from costprof.cli.console import print_json
from costprof.cli.outputs import check_out


def calibrate(
    path: Annotated[Path, typer.Argument(help="The table, a Parquet file.")],
    observations: Annotated[
        Path,
        typer.Option(
            help="What was seen, a row a call (.parquet, .csv or .json): latency_us and counts, or "
            "expert and tokens; where known energy_mj, power_limit_w, temperature_c."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The corrected table, a Parquet file.")],
    moe: Annotated[str | None, typer.Option(help="The MoE, where there are several.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Correct a table's prices by a few observations at run time; nothing is fitted again."""
    from costprof.costmodel.observation import read_observations
    from costprof.costmodel.table import CostTable
    from costprof.costmodel.table_calibration import CALIBRATIONS
    from costprof.costmodel.tablefile import read_table, write_table

    check_out(out, force=force, consequence="no table was written")
    seen = read_observations(observations)
    file = read_table(path)
    corrected = CostTable(file.rows, file.manifest, moe=moe).calibrated(seen)
    manifest = write_table(out, corrected.rows, corrected.manifest, file.model)
    if as_json:
        done = manifest.parameters[CALIBRATIONS][-1]
        print_json({"out": str(out), "content_hash": manifest.content_hash, "calibration": done})
        return
    print(f"{out}: {corrected.rows.num_rows} rows")
    print(f"note: {manifest.notes[-1]}")
