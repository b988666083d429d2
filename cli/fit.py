"""`costprof fit`: a dataset to a cost table, with the errors it makes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from costprof.cli.console import print_json
from costprof.cli.outputs import check_dataset, check_out
from costprof.core.errors import InputError

if TYPE_CHECKING:
    from costprof.costmodel.fitted import FittedTable


def fit(
    out: Annotated[Path, typer.Option(help="The table, a Parquet file.")],
    dataset: Annotated[
        Path | None,
        typer.Argument(help="Folder that sweep or ingest wrote; with --from, few layers or none."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Dataset of another, measured device, to carry prices from."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="With --from: the device to price, H200 say, or a file like those in data/devices."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Fit a cost table to a dataset and print how well it predicts.

    With --from, the table is of a device that was hardly or never measured.
    """
    from costprof.costmodel.tablefile import write_table

    check_out(out, force=force, consequence="no table was written")
    _check(dataset, source, device)
    fitted = _fit_with_progress(dataset, source, device)
    manifest = write_table(out, fitted.rows, fitted.manifest, fitted.model)
    if as_json:
        print_json({"out": str(out), "rows": fitted.rows.num_rows, **manifest.to_dict()})
        return

    from rich.console import Console

    from costprof.cli.figures import print_figures

    console = Console()
    used, noisy, failed = (
        sum(getattr(each, f"rows_{what}") for each in manifest.sources)
        for what in ("used", "noisy", "failed")
    )
    console.print(
        f"{out}: {fitted.rows.num_rows} rows from {used} measurements "
        f"({noisy} noisy, {failed} failed and skipped)",
        highlight=False,
    )
    print_figures(console, manifest)


def _check(dataset: Path | None, source: Path | None, device: str | None) -> None:
    if source is None and device is not None:
        raise InputError(
            "--device is given without --from",
            "a dataset names its device itself; nothing was fitted",
            "leave it out, or name with --from the dataset to carry prices from",
        )
    if source is None and dataset is None:
        raise InputError("no dataset is given", "nothing was fitted", "name the folder of one")
    for folder in (source, dataset):
        if folder is not None:
            check_dataset(folder, "nothing was fitted")


def _fit_with_progress(
    dataset: Path | None, source: Path | None, device: str | None
) -> FittedTable:
    from costprof.cli.stages import stages

    with stages() as tell:
        if source is not None:
            from costprof.costmodel.fit_transferred import fit_transferred

            return fit_transferred(source, dataset, device, tell)
        from costprof.costmodel.fit import fit_dataset

        assert dataset is not None
        return fit_dataset(dataset, tell)
