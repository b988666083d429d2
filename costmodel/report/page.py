"""A report as one HTML page that needs no network and no other file."""

from __future__ import annotations

from functools import lru_cache

import jinja2
from markupsafe import Markup

from costprof.costmodel.report.axes import short
from costprof.costmodel.report.figure import Cell, Numbers, Report


def render_page(report: Report) -> str:
    """Return the page of `report`, the same for the same report."""
    return _environment().get_template("report.html.j2").render(report=report) + "\n"


@lru_cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("costprof.costmodel.report", "templates"),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(cell=_cell, bar=_bar, svg=Markup)
    return environment


def _cell(value: Cell) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return str(value)
    return value if isinstance(value, str) else short(value)


def _bar(value: Cell, numbers: Numbers, column: int) -> str:
    """Length of a bar, in percent of the longest of its column."""
    sizes = [abs(v) for v in (row[column] for row in numbers.rows) if isinstance(v, (int, float))]
    largest = max(sizes, default=0.0)
    if not isinstance(value, (int, float)) or not largest:
        return "0"
    return f"{100.0 * abs(value) / largest:.0f}"
