"""Group calls by tokens and other counts, for curves and cost surfaces."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from costprof.costmodel.report.calls import Array

RANGE = "–"
"""Between the first and the last count of a bin, in its name."""

MOST_BINS = 32
"""Distinct counts up to which each is a bin of its own."""


def count_bins(counts: Array, most: int = MOST_BINS) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return the bins' names, ascending, and the bin of each of `counts` [n], which are ≥ 1.

    Each distinct count by itself while they are at most `most`, else powers of two: a bin holds
    2^k … 2^(k+1) - 1.
    """
    distinct, at = np.unique(counts, return_inverse=True)
    if len(distinct) <= most:
        return [f"{value:.0f}" for value in distinct], np.asarray(at, dtype=np.int64)
    power, at = np.unique(np.floor(np.log2(counts) + 1e-9), return_inverse=True)
    names = [_named(int(2**p), int(2 ** (p + 1)) - 1) for p in power]
    return names, np.asarray(at, dtype=np.int64)


def binned(
    values: Array, at: npt.NDArray[np.int64], bins: int, statistic: Callable[[Array], float]
) -> Array:
    """Return `statistic` of the finite `values` [n] in each bin: [bins], NaN where none is."""
    result = np.full(bins, np.nan)
    for i in range(bins):
        inside = values[at == i]
        inside = inside[np.isfinite(inside)]
        if len(inside):
            result[i] = statistic(inside)
    return result


def bin_centres(counts: Array, at: npt.NDArray[np.int64], bins: int) -> Array:
    """Return the geometric mean of the `counts` [n] in each bin: [bins]."""
    return np.exp(binned(np.log(counts), at, bins, lambda inside: float(inside.mean())))


def _named(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first}{RANGE}{last}"
