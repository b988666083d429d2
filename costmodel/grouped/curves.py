"""Between two measured token counts of a curve: what the neighbours read.

Readings of power near in tokens resemble each other more than the model can say, as they were taken
one after the other by a meter that lags; their mean is then a better guess than a smooth process
that takes half of each reading for noise. That holds for near neighbours alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from costprof.costmodel.grouped.points import LayerPoints

Array = npt.NDArray[np.float64]

MOST_OCTAVES = 2.1
"""Between neighbours further apart than a factor of 4 nothing is read off a straight line."""


def between_counts(known: LayerPoints, values: Array, wanted: LayerPoints) -> Array:
    """Return `values` [n] at `known` layers, straight in tokens, at `wanted` layers [m].

    NaN where a layer does not lie between two known ones of its curve, at most `MOST_OCTAVES` of
    tokens apart.
    """
    result = np.full(len(wanted), np.nan)
    order = np.lexsort((known.tokens, known.curve))
    curves, first, count = np.unique(known.curve[order], return_index=True, return_counts=True)
    asked = np.argsort(wanted.curve, kind="stable")
    starts = np.searchsorted(wanted.curve[asked], curves, side="left")
    ends = np.searchsorted(wanted.curve[asked], curves, side="right")
    for at, start, size in zip(zip(starts, ends, strict=True), first, count, strict=True):
        where, of = asked[at[0] : at[1]], order[start : start + size]
        if size >= 2 and len(where):
            tokens = known.tokens[of]
            inside = np.interp(wanted.tokens[where], tokens, values[of], left=np.nan, right=np.nan)
            upper = np.searchsorted(tokens, wanted.tokens[where]).clip(1, size - 1)
            near = np.log2(tokens[upper] / tokens[upper - 1]) <= MOST_OCTAVES
            result[where] = np.where(near, inside, np.nan)
    return result
