"""`costprof fit`: a dataset to a cost table, with the errors it makes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from costprof.cli.console import print_json
from costprof.cli.outputs import check_dataset, check_out

if TYPE_CHECKING:
    from costprof.costmodel.fitted import FittedTable


def fit(
    dataset: Annotated[Path, typer.Argument(help="Folder that sweep wrote.")],
    out: Annotated[Path, typer.Option(help="The table, a Parquet file.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite the table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Fit a cost table to a dataset and print how well it predicts."""
    from costprof.core.files import writable_folder
    from costprof.costmodel.tablefile import write_table

    check_out(out, force=force, consequence="no table was written")
    check_dataset(dataset, "nothing was fitted")
    if out.parent.exists():
        writable_folder(out.parent)
    fitted = _fit_with_progress(dataset)
    writable_folder(out.parent)
    manifest = write_table(out, fitted.rows, fitted.manifest, fitted.model)
    if as_json:
        print_json({"out": str(out), "rows": fitted.rows.num_rows, **manifest.to_dict()})
        return

    from rich.console import Console

    from costprof.cli.figures import print_figures

    console = Console()
    source = manifest.sources[0]
    console.print(
        f"{out}: {fitted.rows.num_rows} rows from {source.rows_used} measurements "
        f"({source.rows_noisy} noisy, {source.rows_failed} failed and skipped)",
        highlight=False,
    )
    print_figures(console, manifest)


def _fit_with_progress(dataset: Path) -> FittedTable:
    from costprof.cli.stages import stages
    from costprof.costmodel.fit import fit_dataset

    with stages() as tell:
        return fit_dataset(dataset, tell)
