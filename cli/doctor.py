"""`costprof doctor`: what this machine can measure, and why not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from costprof.cli.console import error_line, print_json

if TYPE_CHECKING:
    from costprof.profiler.doctor import Check, Report

NOTHING_TO_MEASURE_WITH = 3
_STYLES = {"ok": "green", "degraded": "yellow", "missing": "red"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Say what this machine can measure and, where it cannot, the way out."""
    from rich.console import Console

    from costprof.profiler.doctor import examine

    with Console(stderr=True).status("") as status:
        report = examine(lambda name: status.update(f"Trying {name} ..."))
    if as_json:
        print_json(report.to_dict())
    else:
        _print_report(report)
    if report.auto_backend == "none":
        error_line("torch does not run here; nothing can be measured; pip install torch")
        raise typer.Exit(NOTHING_TO_MEASURE_WITH)


def _print_report(report: Report) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found")
    for check in report.checks:
        status = f"[{_STYLES[check.status]}]{check.status}[/]"
        table.add_row(check.name, status, escape(_finding(check)))
    console.print(table)
    console.print()
    usable = [name for name, reason in report.unusable.items() if not reason]
    console.print(f"Backends of costprof sweep: {', '.join(usable) or 'none'}")
    for name, reason in report.unusable.items():
        if reason:
            console.print(f"  not {name}: see '{reason}' above")
    console.print(f"--backend auto takes: {report.auto_backend}, on device: {report.device}")
    how = "" if report.energy_source == "modelled" else " (by costprof sweep --energy N)"
    console.print(f"Best energy source offered: {report.energy_source}{how}")


def _finding(check: Check) -> str:
    lines = [check.found]
    if check.consequence:
        lines.append(f"-> {check.consequence}")
    if check.way_out:
        lines.append(f"way out: {check.way_out}")
    return "\n".join(lines)
