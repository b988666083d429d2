"""`costprof table merge`: several tables of one device as one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from costprof.cli.console import print_json
from costprof.cli.outputs import check_out
from costprof.core.errors import InputError


def merge(
    tables: Annotated[
        list[Path], typer.Argument(help="Tables of one device, the preferred one first.")
    ],
    out: Annotated[Path, typer.Option(help="The merged table, a Parquet file.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite the table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Put the rows of several tables of one device into one."""
    from costprof.costmodel.table_merge import merge_tables
    from costprof.costmodel.tablefile import read_table, write_table

    check_out(out, force=force, consequence="no table was written")
    if len(tables) < 2:
        raise InputError("there is one table only", "nothing was merged", "name two or more")
    merged = merge_tables([read_table(path) for path in tables])
    manifest = write_table(out, merged.file.rows, merged.file.manifest, merged.file.model)
    if as_json:
        print_json(
            {
                "out": str(out),
                "rows": merged.file.rows.num_rows,
                "rows_taken": list(merged.rows_taken),
                "content_hash": manifest.content_hash,
                "notes": list(manifest.notes),
            }
        )
        return
    print(f"{out}: {merged.file.rows.num_rows} rows")
    for path, count in zip(tables, merged.rows_taken, strict=True):
        print(f"  {count} from {path}")
    for note in manifest.notes:
        print(f"note: {note}")
