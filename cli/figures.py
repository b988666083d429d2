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
    table = _table_of_errors("left out")
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
    if "transfer" in figures:
        _print_transfer(console, figures["transfer"])
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


def _print_transfer(console: Console, figures: dict[str, Any]) -> None:
    """Print how doubtful carried prices are and, where points tell, what they erred by."""
    console.print(
        f"carried from {figures['source_device']} to {figures['target_device']}, of which "
        f"{figures['points']} layers were measured",
        highlight=False,
    )
    if figures["half_width_90"] is not None:
        console.print(
            f"90 % intervals of transferred prices are ±{figures['half_width_90']:.0f} % wide on "
            "average",
            highlight=False,
        )
    if not figures["left_out"]:
        return
    table = _table_of_errors("left out")
    for quantity in ("latency", "energy"):
        if quantity in figures["left_out"]:
            _add_methods(table, [quantity], figures["left_out"][quantity]["all"])
    console.print(table)


def print_errors(console: Console, figures: dict[str, Any], title: str) -> None:
    """Print the figures of a frame of held-out layers (`costmodel.evaluation.figures`)."""
    table = _table_of_errors("quantity", "layers")
    table.title, table.title_justify = title, "left"
    for quantity in ("latency", "energy"):
        for subset, methods in figures.get(quantity, {}).items():
            _add_methods(table, [quantity, subset], methods)
    console.print(table)


def _table_of_errors(*labels: str) -> Table:
    table = Table(box=None, header_style="bold")
    for name in (*labels, "predicted by"):
        table.add_column(name)
    for name in ("n", "MAPE %", "median %", "p90 %", "90 % interval"):
        table.add_column(name, justify="right")
    return table


def _add_methods(table: Table, labels: list[str], methods: dict[str, Any]) -> None:
    # A manifest read back has lost the order.
    for method, errors in sorted(methods.items(), key=lambda each: each[0] != "costprof"):
        covered = errors.get("coverage_90")
        table.add_row(
            *labels,
            method,
            str(errors["layers"]),
            *(f"{errors[each]:.1f}" for each in ("mape", "median", "p90")),
            "" if covered is None else f"holds {covered:.1f} %",
        )
        labels = [""] * len(labels)


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
