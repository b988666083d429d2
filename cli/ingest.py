"""`costprof ingest`: take profiler exports made elsewhere into a dataset."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from costprof.cli.console import error_line, print_json
from costprof.core.errors import CostprofError

if TYPE_CHECKING:
    from costprof.profiler.ingest import IngestSummary


def ingest(
    files: Annotated[
        list[Path],
        typer.Argument(help="nsys .sqlite or .nsys-rep, ncu .csv (raw page) or .ncu-rep."),
    ],
    out: Annotated[Path, typer.Option(help="Dataset folder to add to.")],
    force: Annotated[
        bool, typer.Option("--force", help="Replace another file of the same name.")
    ] = False,
    meter: Annotated[
        bool, typer.Option("--meter", help="The files are a wall meter's CSV: Unix s, watts.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Read exports of nsys and ncu into a dataset, kernels attributed to NVTX ranges.

    Each file is taken as a whole or refused with one line; the others go on. The exit code is that
    of the first refusal. Ingesting a file again replaces what it gave before.
    """
    if meter:
        from costprof.cli.ingest_meter import take_meter_files

        take_meter_files(files, out, as_json=as_json)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from costprof.profiler.ingest import ingest_file

    taken: list[IngestSummary] = []
    refused: list[tuple[Path, CostprofError]] = []
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with progress:
        task = progress.add_task("", total=len(files))
        for path in files:
            progress.update(task, description=path.name)
            try:
                taken.append(ingest_file(path, out, force=force))
            except CostprofError as error:
                refused.append((path, error))
            progress.advance(task)
    if as_json:
        print_json(
            {
                "ingested": [dataclasses.asdict(summary) for summary in taken],
                "refused": [
                    {"file": path.name, "error": str(refusal), "exit_code": refusal.exit_code}
                    for path, refusal in refused
                ],
            }
        )
    else:
        for summary in taken:
            print(_line(summary))
    for _, refusal in refused:
        error_line(str(refusal))
    if refused:
        raise typer.Exit(refused[0][1].exit_code)


def _line(summary: IngestSummary) -> str:
    if summary.counters:
        return f"{summary.source}: {summary.counters} counters"
    text = f"{summary.source}: {summary.kernels} kernels"
    if summary.kernels:
        text += f", {summary.attributed} attributed to ranges"
    reasons = {
        "launched outside every range": summary.no_range,
        "without a launch row": summary.no_launch_row,
    }
    missed = [f"{number} {reason}" for reason, number in reasons.items() if number]
    if missed:
        text += f", {sum(reasons.values())} unattributed ({', '.join(missed)})"
    return f"{text}; {summary.ranges} ranges, {summary.costprof_ranges} of them costprof's"
