"""`costprof ingest`: take profiler exports and measurements made elsewhere into a dataset."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from costprof.cli.console import error_line, print_json
from costprof.core.errors import CostprofError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from costprof.profiler.ingest import IngestSummary
    from costprof.profiler.public import PublicSummary


def ingest(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="nsys .sqlite or .nsys-rep, ncu .csv (raw page) or .ncu-rep; see --format."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Dataset folder to add to.")],
    force: Annotated[
        bool, typer.Option("--force", help="Replace another file of the same name.")
    ] = False,
    format: Annotated[
        Literal["profiler", "aiconfigurator"],
        typer.Option(
            help="What the files are: a profiler's, told apart by their suffix, or public "
            "measurements of MoE layers as Parquet."
        ),
    ] = "profiler",
    meter: Annotated[
        bool, typer.Option("--meter", help="The files are a wall meter's CSV: Unix s, watts.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Read exports of nsys and ncu into a dataset, kernels attributed to NVTX ranges.

    With --format aiconfigurator, read public measurements into measurements/ instead.

    Each file is taken as a whole or refused with one line; the others go on. The exit code is that
    of the first refusal. Ingesting a file again replaces what it gave before.
    """
    if meter and format != "profiler":
        raise InputError(
            f"--meter and --format {format} are both given",
            "nothing was ingested",
            "ingest the meter's files and the others apart",
        )
    if meter:
        from costprof.cli.ingest_meter import take_meter_files

        take_meter_files(files, out, as_json=as_json)
        return
    refused: list[tuple[Path, CostprofError]] = []
    summaries: list[dict[str, Any]] = []
    lines: list[str] = []
    for path in _watched(files):
        try:
            if format == "aiconfigurator":
                from costprof.profiler.public import ingest_public_file

                public = ingest_public_file(path, out, force=force)
                summaries.append(dataclasses.asdict(public))
                lines.append(_public_line(public))
            else:
                from costprof.profiler.ingest import ingest_file

                summary = ingest_file(path, out, force=force)
                summaries.append(dataclasses.asdict(summary))
                lines.append(_line(summary))
        except CostprofError as error:
            refused.append((path, error))
    if as_json:
        print_json(
            {
                "ingested": summaries,
                "refused": [
                    {"file": path.name, "error": str(refusal), "exit_code": refusal.exit_code}
                    for path, refusal in refused
                ],
            }
        )
    else:
        for line in lines:
            print(line)
    for _, refusal in refused:
        error_line(str(refusal))
    if refused:
        raise typer.Exit(refused[0][1].exit_code)


def _watched(files: list[Path]) -> Iterator[Path]:
    """Yield each file, with a progress bar on standard error meanwhile."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

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
            yield path
            progress.advance(task)


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


def _public_line(summary: PublicSummary) -> str:
    text = (
        f"{summary.source}: {summary.measurements} measurements of {summary.classes} classes, "
        f"{summary.device}, {', '.join(summary.frameworks)}"
    )
    if summary.with_energy:
        text += f"; {summary.with_energy} with energy, {summary.energy_trusted} of it trusted"
    if summary.repeated:
        text += f"; {summary.repeated} repeat another, the median kept"
    if summary.skipped:
        reasons = ", ".join(f"{number} {reason}" for reason, number in summary.skipped.items())
        text += f"; {sum(summary.skipped.values())} skipped ({reasons})"
    return text
