"""Series of a plot: few enough to tell apart, and few enough points to draw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from costprof.costmodel.report.calls import Array, Strings
from costprof.costmodel.report.chart import MOST_SERIES, Dots, series_style

MOST_DRAWN = 3000
"""Points drawn of one figure."""


def series_order(series: Strings, most: int = MOST_SERIES) -> tuple[list[str], Strings]:
    """Return the names of at most `most` series, the largest, in order, and each call's.

    What is beyond is called "other".
    """
    names, counts = np.unique(series, return_counts=True)
    ordered = [str(names[i]) for i in np.argsort(-counts, kind="stable")]
    if len(ordered) <= most:
        return sorted(ordered), series
    kept = sorted(ordered[: most - 1])
    return [*kept, "other"], np.where(np.isin(series, kept), series, "other")


def series_dots(x: Array, y: Array, series: Strings, names: Sequence[str]) -> list[Dots]:
    """Return the points of each series of `names`, of all at most `MOST_DRAWN`."""
    kept = sampled(len(x), MOST_DRAWN)
    own = [kept[series[kept] == name] for name in names]
    return [Dots(x[at], y[at], series_style(i)) for i, at in enumerate(own)]


def series_legend(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return class and name of each series."""
    return tuple((series_style(i), name) for i, name in enumerate(names))


def drawn_of(n: int) -> str:
    """Say how many of `n` calls are drawn."""
    if n <= MOST_DRAWN:
        return f"All {n} calls are drawn."
    return f"{MOST_DRAWN} of {n} calls are drawn, chosen at random but always the same ones."


def sampled(n: int, most: int) -> npt.NDArray[np.int64]:
    """Return at most `most` of the positions 0 … n - 1, at random but always the same."""
    if n <= most:
        return np.arange(n)
    return np.asarray(np.sort(np.random.default_rng(0).choice(n, most, replace=False)))
