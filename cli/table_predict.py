"""`costprof table predict`: a table of MoEs that nobody measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from costprof.cli.console import print_json
from costprof.cli.outputs import check_out
from costprof.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from costprof.costmodel.fitted import FittedTable
    from costprof.costmodel.tablefile import TableFile
    from costprof.profiler.stored_moe import StoredMoe


def predict(
    model: Annotated[Path, typer.Argument(help="A table that holds a model of whole layers.")],
    out: Annotated[Path, typer.Option(help="The table of predictions, a Parquet file.")],
    preset: Annotated[
        list[str] | None, typer.Option(help="A named model; all of them by default.")
    ] = None,
    model_config: Annotated[
        list[Path] | None, typer.Option(help="A Hugging Face config.json.")
    ] = None,
    kernel: Annotated[
        str | None, typer.Option(help="Kernel that runs the layers, by default the best known.")
    ] = None,
    note: Annotated[
        list[str] | None, typer.Option(help="A line for the manifest: whose data it is, say.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Price the experts of models nobody measured, so that a runtime can route by them today.

    Every row is of tier `predicted`; `transferred`, if the model was carried from another device.
    The model goes along: costprof predict takes the table, too.
    """
    from costprof.costmodel.tablefile import read_table, write_table

    check_out(out, force=force, consequence="no table was written")
    file = read_table(model)
    moes = _moes(preset, model_config)
    fitted = _priced(file, moes, kernel, note or [])
    manifest = write_table(out, fitted.rows, fitted.manifest, fitted.model)
    figures = manifest.validation["additive"]
    if as_json:
        print_json(
            {
                "out": str(out),
                "rows": fitted.rows.num_rows,
                "device": manifest.device.name,
                "content_hash": manifest.content_hash,
                "moes": figures,
            }
        )
        return
    _print(out, fitted, figures)


def _moes(preset: list[str] | None, model_config: list[Path] | None) -> list[StoredMoe]:
    from costprof.profiler.presets import model_names, moe_from_config_file, preset_moe

    names = preset if preset or model_config else model_names()
    return [
        *(preset_moe(name) for name in names or []),
        *(moe_from_config_file(path) for path in model_config or []),
    ]


def _priced(
    file: TableFile, moes: list[StoredMoe], kernel: str | None, notes: list[str]
) -> FittedTable:
    from costprof.cli.stages import stages
    from costprof.costmodel.predicted_table import predicted_table

    if any(not line.strip() for line in notes):
        raise InputError("a --note is empty", "nothing was priced", "leave it out")
    with stages() as tell:
        return predicted_table(file, moes, tell, kernel=kernel, notes=notes)


def _print(out: Path, fitted: FittedTable, figures: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(
        f"{out}: {fitted.rows.num_rows} rows, all {fitted.rows['tier'][0]}", highlight=False
    )
    table = Table(box=None)
    for title in ("MoE", "framework", "kernel"):
        table.add_column(title)
    for title in ("sum of experts off the model: latency %", "energy %"):
        table.add_column(title, justify="right")
    for name, each in figures.items():
        off = [f"{each[key]['mape']:.1f}" for key in ("latency_off_percent", "energy_off_percent")]
        table.add_row(name, each["framework"], each["kernel"], *off)
    console.print(table)
