"""Figures of time: the roofline, and the cost surface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from costprof.costmodel.report.axes import log_axis, short
from costprof.costmodel.report.binning import binned, count_bins
from costprof.costmodel.report.calls import Calls
from costprof.costmodel.report.chart import REFERENCE, Line, Mark, chart
from costprof.costmodel.report.figure import Cell, Figure, Numbers
from costprof.costmodel.report.heat import heat_map
from costprof.costmodel.report.series import drawn_of, series_dots, series_legend, series_order

Positions = npt.NDArray[np.int64]

_MOST_COLUMNS = 16
_MOST_ROWS = 24


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What limits a device: operations per second beyond the memory's slope."""

    name: str
    flops_per_s: float
    bytes_per_s: float


def roofline(calls: Calls, ceilings: Sequence[Ceiling], origin: str) -> Figure:
    """Draw achieved operations per second over operations per byte; `origin` of the ceilings."""
    x, y = calls.flops / calls.bytes, calls.flops / calls.latency_us * 1e6
    names, series = series_order(calls.series)
    across = log_axis("operations per byte", x)
    peaks = np.array([ceiling.flops_per_s for ceiling in ceilings])
    up = log_axis("operations per second", np.concatenate([y, peaks]))
    marks: list[Mark] = [*series_dots(x, y, series, names)]
    line = np.geomspace(across.low, across.high, 160)
    for ceiling in ceilings:
        limit = np.minimum(ceiling.flops_per_s, line * ceiling.bytes_per_s)
        marks.append(Line(line, np.where(limit >= up.low, limit, np.nan), REFERENCE))
    rows: list[tuple[Cell, ...]] = []
    for name in names:
        own = series == name
        rows.append(
            (
                name,
                int(own.sum()),
                float(np.median(x[own])),
                float(np.median(y[own])),
                float(y[own].max()),
            )
        )
    rows += [(c.name, None, c.flops_per_s / c.bytes_per_s, None, c.flops_per_s) for c in ceilings]
    return Figure(
        name="roofline",
        title="Roofline",
        caption="Operations and bytes are the compulsory ones, computed from shapes. Lines: "
        f"{origin}. A call far below the lines pays for launches, padding or waiting. "
        f"{drawn_of(len(calls))}",
        numbers=Numbers(
            (
                "series or ceiling",
                "calls",
                "operations per byte, median (ceiling: its corner)",
                "operations per second, median",
                "most",
            ),
            rows,
        ),
        svg=chart(across, up, marks, "Achieved operations per second over operations per byte"),
        legend=(*series_legend(names), (REFERENCE, "ceilings")),
    )


def surface_by_choice(calls: Calls, which: str = "") -> Figure:
    """Draw latency over tokens and shape; `which` calls are drawn, in words."""
    names, counts = np.unique(calls.cell, return_counts=True)
    most = sorted(str(names[i]) for i in np.argsort(-counts, kind="stable")[:_MOST_ROWS])
    some = calls.take(np.isin(calls.cell, most))
    row = np.asarray(np.searchsorted(most, some.cell), dtype=np.int64)
    beyond = len(names) - len(most)
    return _surface(
        some,
        row,
        most,
        name="surface-shape",
        title="Latency over tokens and shape",
        caption="Median latency"
        + which
        + (f"; the {len(most)} shapes measured most, {beyond} more are left out" if beyond else ""),
    )


def surface_by_active(calls: Calls) -> Figure | None:
    """Draw latency over tokens and active experts, of the shape measured most; None without one."""
    names, counts = np.unique(calls.shape, return_counts=True)
    shape = str(names[np.argmax(counts)])
    some = calls.take(calls.shape == shape)
    some = some.take(some.active >= 1.0)
    if len(np.unique(some.active)) < 2:
        return None
    rows, at = count_bins(some.active, most=12)
    return _surface(
        some,
        at,
        [f"{row} active" for row in rows],
        name="surface-active",
        title="Latency over tokens and active experts",
        caption=f"Layers of {shape}, the shape measured most: median over its precisions, shards "
        "and routings, by the experts awake on the rank measured",
    )


def _surface(
    calls: Calls, row: Positions, rows: list[str], *, name: str, title: str, caption: str
) -> Figure:
    columns, column = count_bins(calls.tokens, most=_MOST_COLUMNS)
    values = binned(
        calls.latency_us,
        row * len(columns) + column,
        len(rows) * len(columns),
        lambda inside: float(np.median(inside)),
    ).reshape(len(rows), len(columns))
    cells: list[tuple[Cell, ...]] = [
        (label, *(None if np.isnan(value) else float(value) for value in each))
        for label, each in zip(rows, values, strict=True)
    ]
    return Figure(
        name=name,
        title=title,
        caption=f"{caption}. Shades follow the logarithm, from {short(np.nanmin(values))} to "
        f"{short(np.nanmax(values))} µs.",
        numbers=Numbers(("µs at tokens", *columns), cells),
        svg=heat_map(values, columns, rows, "tokens", title, "µs"),
    )
