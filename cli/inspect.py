"""`costprof inspect`: what a dataset holds, and the SQL to go on with."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from costprof.cli.console import print_json

if TYPE_CHECKING:
    from rich.table import Table

    from costprof.profiler.summary import DatasetSummary


_MOST_CLASSES = 60
"""With more than these, kernels are listed instead of classes."""


def inspect(
    dataset: Annotated[Path, typer.Argument(help="Folder that sweep or ingest wrote.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Print a summary of a dataset and the SQL to go on with."""
    from costprof.profiler.summary import suggested_queries, summarise_dataset

    summary = summarise_dataset(dataset)
    if as_json:
        print_json(dataclasses.asdict(summary))
        return
    _print_summary(summary)
    print("\nGo on with DuckDB, for example:")
    for query in suggested_queries(dataset, summary.rows):
        print(f'\n  duckdb.sql("""{query.replace(chr(10), chr(10) + "  ")}""")')


def _print_summary(summary: DatasetSummary) -> None:
    from rich.console import Console

    console = Console()
    counts = ", ".join(f"{number} {name}" for name, number in summary.rows.items() if number)
    console.print(counts)
    for origin in summary.origins:
        console.print(_origin_line(origin), markup=False, highlight=False)
    if len(summary.classes) > _MOST_CLASSES:
        for row in summary.kernels:
            console.print(_kernel_lines(row), markup=False, highlight=False)
        console.print(f"{len(summary.classes)} classes and shards: see --json for each")
    elif summary.classes:
        console.print(_class_table(summary))
    for failure in summary.failures:
        console.print(
            f"failed: {failure['scenarios']} x {failure['op']} T={failure['tokens']}: "
            f"{failure['error']}",
            style="red",
            markup=False,
        )


def _origin_line(origin: dict[str, Any]) -> str:
    """By what the rows were measured; of those made elsewhere less is known."""
    how = ", ".join(filter(None, (origin["timer"], origin["tool_version"])))
    known = [f"{origin['device_name']} by {origin['backend']} ({how})"]
    if origin["torch_version"]:
        known.append(f"torch {origin['torch_version']}")
    if origin["num_threads"]:
        known.append(f"{origin['num_threads']} threads")
    return f"{', '.join(known)}; energy {origin['energy_source'] or 'not known'}"


def _class_table(summary: DatasetSummary) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for name in ("op", "shape", "weights", "cache"):
        table.add_column(name)
    for name in ("n", "tokens", "p50 us", "CV", "noisy", "failed"):
        table.add_column(name, justify="right")
    for row in summary.classes:
        table.add_row(
            row["op"],
            f"{row['d_model']}x{row['d_ff']}" if row["d_ff"] else str(row["d_model"]),
            row["weights"],
            row["cache"],
            str(row["scenarios"]),
            _range(row["tokens_min"], row["tokens_max"], "{}"),
            _range(row["latency_us_min"], row["latency_us_max"], "{:.0f}"),
            "" if row["robust_cv"] is None else f"{row['robust_cv']:.1%}",
            str(row["noisy"] or ""),
            str(row["failed"] or ""),
        )
    return table


def _kernel_lines(row: dict[str, Any]) -> str:
    framework = row["framework"] or ""
    # A kernel made elsewhere is called by its framework too: vllm:NAME under vllm VERSION.
    kernel = row["kernel"].removeprefix(f"{framework.partition(' ')[0]}:")
    known = [
        f"{row['classes']} classes",
        f"{row['scenarios']} rows",
        f"{_range(row['tokens_min'], row['tokens_max'], '{}')} tokens",
        f"p50 {_range(row['latency_us_min'], row['latency_us_max'], '{:.0f}')} us",
    ]
    if row["with_energy"]:
        known.append(f"energy of {row['with_energy']} ({row['energy_trusted']} trusted)")
    known += [f"{row[name]} {name}" for name in ("noisy", "failed") if row[name]]
    return f"{row['op']}, {row['weights']}, {framework} {kernel}\n  {', '.join(known)}"


def _range(low: float | None, high: float | None, style: str) -> str:
    if low is None or high is None:
        return ""
    first, last = style.format(low), style.format(high)
    return first if first == last else f"{first}–{last}"
