"""Prints a table's validation figures beside their baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from costprof.costmodel.titles import KIND_TITLES, METHOD_TITLES

if TYPE_CHECKING:
    from rich.console import Console

    from costprof.costmodel.manifest import Manifest


def print_figures(console: Console, manifest: Manifest) -> None:
    """Print cross-validated errors of latency, energy and layers, and the manifest's notes."""
    figures = manifest.validation
    table = Table(box=None, header_style="bold")
    for name in ("left out", "predicted by"):
        table.add_column(name)
    for name in ("n", "MAPE %", "median %", "p90 %", "90 % interval"):
        table.add_column(name, justify="right")
    for kind, title in KIND_TITLES.items():
        if kind in figures.get("latency", {}):
            _add(table, f"latency, {title}", figures["latency"][kind])
    for source, methods in figures.get("energy", {}).items():
        _add(table, f"energy ({source})", methods)
    for class_id, layer in figures.get("layers", {}).items():
        _add(table, f"layer latency, {class_id[:6]}", layer["latency"])
        if layer["energy"]:
            _add(table, f"layer energy ({layer['energy_source']})", layer["energy"])
    if table.row_count:
        console.print(table)
    if "grouped" in figures:
        _print_grouped(console, figures["grouped"])
    if "modelled" in figures.get("energy", {}):
        console.print(
            "energy is modelled: its figures compare with the power model, not with a meter",
            highlight=False,
        )
    for note in manifest.notes:
        console.print(f"note: {note}", highlight=False, markup=False)


_LEFT_OUT = {
    "new_shapes": "layers of new shapes",
    "known_groups": "layers of known groups",
    "power_between_counts": "power, between counts",
}


def _print_grouped(console: Console, figures: dict[str, Any]) -> None:
    table = Table(box=None, header_style="bold")
    for name in ("left out", "predicted by"):
        table.add_column(name)
    for name in ("n", "MAPE %", "median %", "p90 %", ""):
        table.add_column(name, justify="right")
    for kind, title in _LEFT_OUT.items():
        for method, errors in figures.get(kind, {}).items():
            if not errors["points"]:
                continue
            chosen = "chosen" if method == figures["chosen"][kind] else ""
            numbers = [f"{errors[each]:.1f}" for each in ("mape", "median", "p90")]
            table.add_row(title, method, f"{errors['points']:.0f}", *numbers, chosen)
            title = ""
    console.print(table)


def _add(table: Table, left_out: str, methods: dict[str, Any]) -> None:
    # A manifest read back has lost the order.
    for name, errors in sorted(
        methods.items(), key=lambda each: list(METHOD_TITLES).index(each[0])
    ):
        covered = errors.get("coverage_90")
        table.add_row(
            left_out,
            METHOD_TITLES[name],
            str(errors["points"]),
            f"{errors['mape']:.1f}",
            f"{errors['median']:.1f}",
            f"{errors['p90']:.1f}",
            "" if covered is None else f"holds {covered:.0f} %",
        )
        left_out = ""
