"""Figures of energy: what a call costs, what could be chosen instead, and performance per watt."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from costprof.costmodel.report.axes import Array, log_axis, token_axis
from costprof.costmodel.report.binning import bin_centres, binned, count_bins
from costprof.costmodel.report.calls import Calls
from costprof.costmodel.report.chart import REFERENCE, Dots, Line, Mark, chart, series_style
from costprof.costmodel.report.figure import Cell, Figure, Numbers
from costprof.costmodel.report.series import drawn_of, series_dots, series_legend, series_order

_MOST_IN_FRONT = 60


def energy_figures(calls: Calls, limit_w: float, kind: str) -> list[Figure]:
    """Return all figures of energy of the `calls` whose energy is known; `kind` says of it."""
    known = calls.take(np.isfinite(calls.energy_mj) & (calls.energy_mj > 0.0))
    if not len(known):
        return []
    found = [
        energy_against_latency(known, limit_w, kind),
        choices(known, kind),
        per_watt(known, kind),
    ]
    return [figure for figure in found if figure is not None]


def energy_against_latency(calls: Calls, limit_w: float, kind: str) -> Figure:
    """Draw the energy of every call over its latency, with lines of constant power."""
    names, series = series_order(calls.series)
    x = log_axis("latency, µs", calls.latency_us)
    y = log_axis("energy of a call, mJ", calls.energy_mj)
    line = np.geomspace(x.low, x.high, 120)
    marks: list[Mark] = [*series_dots(calls.latency_us, calls.energy_mj, series, names)]
    for share, dashed in ((1.0, False), (0.5, True)):
        energy = share * limit_w * line * 1e-3
        inside = (energy >= y.low) & (energy <= y.high)
        marks.append(Line(line[inside], energy[inside], REFERENCE, dashed))
    power = calls.energy_mj / calls.latency_us * 1e3
    rows: list[tuple[Cell, ...]] = []
    for name in names:
        own = power[series == name]
        low, middle, high = (float(np.quantile(own, q)) for q in (0.1, 0.5, 0.9))
        rows.append((name, len(own), low, middle, high))
    return Figure(
        name="energy-latency",
        title="Energy against latency",
        caption=f"Energy is {kind}. Lines: constant power at the limit of {limit_w:.0f} W, dashed "
        "at half of it; calls on one line differ in energy only as they differ in time. "
        f"{drawn_of(len(calls))}",
        numbers=Numbers(("series", "calls", "W, p10", "W, median", "W, p90"), rows),
        svg=chart(x, y, marks, "Energy of a call against its latency"),
        legend=(*series_legend(names), (REFERENCE, "power limit, and half")),
    )


def choices(calls: Calls, kind: str) -> Figure | None:
    """Draw energy per token over latency for one shape, the Pareto front marked.

    None where no shape was measured in more than one way.
    """
    even = calls.take(calls.even)
    if not len(even):
        return None
    shapes, counts = np.unique(even.shape, return_counts=True)
    shape = str(shapes[np.argmax(counts)])
    some = even.take(even.shape == shape)
    if len(some) < 3:
        return None
    per_token = some.energy_mj * some.ranks / some.tokens
    front = pareto_front(some.latency_us, per_token)
    names, series = series_order(some.series)
    x, y = log_axis("latency, µs", some.latency_us), log_axis("energy of a token, mJ", per_token)
    edge = some.latency_us[front], per_token[front]
    marks: list[Mark] = [
        *series_dots(some.latency_us, per_token, series, names),
        Line(*edge, "front"),
        Dots(*edge, "front"),
    ]
    listed = front[:: -(-len(front) // _MOST_IN_FRONT)]
    rows: list[tuple[Cell, ...]] = [
        (int(some.tokens[i]), str(some.choice[i]), float(some.latency_us[i]), float(per_token[i]))
        for i in listed.tolist()
    ]
    shared = "; energy of all ranks, taken to be alike" if some.ranks.max() > 1 else ""
    return Figure(
        name="pareto",
        title="Choices for one shape",
        caption=f"Calls of {shape} with tokens spread evenly, in every batch, precision, kernel "
        f"and shard measured{shared}. On the front no other is both faster and cheaper per token. "
        f"Energy is {kind}. "
        f"{drawn_of(len(some))}",
        numbers=Numbers(("tokens", "choice on the front", "latency µs", "mJ per token"), rows),
        svg=chart(x, y, marks, f"Energy of a token against latency of the call, {shape}"),
        legend=(*series_legend(names), ("front", "Pareto front")),
    )


def pareto_front(first: Array, second: Array) -> npt.NDArray[np.int64]:
    """Return the points [k], ascending in `first` [n], that none beats in both.

    >>> pareto_front(np.array([3.0, 1.0, 2.0, 2.5]), np.array([1.0, 3.0, 2.0, 2.5])).tolist()
    [1, 2, 0]
    """
    order = np.lexsort((second, first))
    least = np.minimum.accumulate(second[order])
    better = np.append(True, least[1:] < least[:-1])
    return np.asarray(order[better], dtype=np.int64)


def per_watt(calls: Calls, kind: str) -> Figure:
    """Draw operations per joule over tokens."""
    efficiency = calls.flops / calls.energy_mj * 1e3
    names, series = series_order(calls.series)
    bins, at = count_bins(calls.tokens)
    centre = bin_centres(calls.tokens, at, len(bins))
    x = token_axis(calls.tokens)
    y = log_axis("operations per joule", efficiency)
    marks: list[Mark] = [*series_dots(calls.tokens, efficiency, series, names)]
    medians = []
    for i, name in enumerate(names):
        own = np.where(series == name, efficiency, np.nan)
        medians.append(binned(own, at, len(bins), lambda inside: float(np.median(inside))))
        marks.append(Line(centre, medians[-1], series_style(i)))
    rows: list[tuple[Cell, ...]] = [
        (bins[i], *(None if np.isnan(m[i]) else float(m[i]) for m in medians))
        for i in range(len(bins))
    ]
    return Figure(
        name="per-watt",
        title="Performance per watt",
        caption=f"Compulsory operations per joule, which is operations per second per watt, of one "
        f"rank; lines are medians. Energy is {kind}. {drawn_of(len(calls))}",
        numbers=Numbers(("tokens", *(f"{name}, operations per J" for name in names)), rows),
        svg=chart(x, y, marks, "Operations per joule against tokens"),
        legend=series_legend(names),
    )
