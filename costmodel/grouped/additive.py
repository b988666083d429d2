"""A layer's price as a sum over its experts, from what the model says of whole layers.

    price(counts) ≈ base + Σ_e f(n_e),      f(0) = 0, f non-decreasing, base ≥ 0

A router asks what one expert less saves and what one token more costs; a model of whole layers
answers neither without being run for every candidate. So `f`, piecewise linear between knots, is
fitted once to the model's prices of many batches: the routings that the generator of the public
measurements draws, and batches whose tokens gather on fewer experts than usual, as a router that
prices experts makes them. Least squares of relative errors, non-negative in the base and in the
rise from knot to knot (Lawson and Hanson, Solving Least Squares Problems, 1974, ch. 23);
neighbouring segments are drawn towards one slope: tiles make stairs, and no batch stands on one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from costprof.costmodel.grouped.token_counts import Counts, rank_counts

Array = npt.NDArray[np.float64]

MOST_TOKENS = 4096
_SMOOTH = 0.3  # weight of a change of slope beside that of an error of all batches together
_FEWEST = 0.25  # gathered batches wake at least this share of the experts that balanced ones do
_DRAWS = 8
_ROUTINGS = ("power_law_1.01", "power_law_1.2")


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch and how it falls on the experts: `counts` [draws, E], means over draws count."""

    tokens: int
    distribution: str
    counts: Counts


@dataclass(frozen=True, slots=True)
class AdditivePrice:
    """`base` and `f` at `knots` [m] (whole token counts, ascending from 1), in the unit fitted."""

    base: float
    knots: npt.NDArray[np.int64]
    values: Array

    def price(self, batches: list[Batch]) -> Array:
        """Return the price of each batch: [n]."""
        return _design(batches, self.knots) @ np.diff(self.values, prepend=0.0) + self.base


def example_batches(experts: int, top_k: int) -> list[Batch]:
    """Return batches of 1 to `MOST_TOKENS` tokens for a layer of `experts`, all on one rank."""
    batches = []
    for tokens in sorted({round(2 ** (half / 2)) for half in range(25)} | {3}):
        copies = tokens * top_k
        usual = min(experts, copies)
        fewest = max(top_k, round(_FEWEST * usual))
        for active in sorted({round(each) for each in np.geomspace(fewest, usual, 6)}):
            batches.append(Batch(tokens, "balanced", _even(copies, active, experts)[None]))
        for name in _ROUTINGS:
            batches.append(
                Batch(tokens, name, rank_counts(tokens, experts, top_k, 1, name, _DRAWS))
            )
    return batches


def knots_for(batches: list[Batch]) -> npt.NDArray[np.int64]:
    """Return token counts from 1 on, two steps a doubling, as far as `batches` can tell of them.

    That is to the largest mean of a batch's busy experts; few batches have an expert beyond it.
    """
    most = max(round(batch.counts[batch.counts > 0].mean()) for batch in batches)
    doublings = range(1, most.bit_length() + 1)
    grid = [1, *(n for p in doublings for n in (2**p, 3 * 2 ** (p - 1)))]
    return np.array(sorted({n for n in grid if n < most} | {most}), dtype=np.int64)


def fit_additive(
    batches: list[Batch], prices: Array, knots: npt.NDArray[np.int64]
) -> AdditivePrice:
    """Fit positive `prices` [n] of `batches`."""
    design = np.column_stack([np.ones(len(batches)), _design(batches, knots)]) / prices[:, None]
    width = np.diff(knots, prepend=0).astype(np.float64)
    strength = _SMOOTH * np.sqrt((design**2).sum(axis=0))
    # Waking an expert is no slope: the first segment is not compared with the second.
    bends = np.zeros((max(len(knots) - 2, 0), design.shape[1]))
    for row, segment in enumerate(range(2, len(knots))):
        bends[row, segment + 1] = strength[segment + 1]
        bends[row, segment] = -strength[segment + 1] * width[segment] / width[segment - 1]
    wanted = np.concatenate([np.ones(len(batches)), np.zeros(len(bends))])
    found, _ = nnls(np.vstack([design, bends]), wanted)
    return AdditivePrice(float(found[0]), knots, np.cumsum(found[1:]))


def _design(batches: list[Batch], knots: npt.NDArray[np.int64]) -> Array:
    """Return how much of each segment up to a knot the experts of each batch fill: [n, m]."""
    edges = np.concatenate([[0], knots]).astype(np.float64)
    filled = np.empty((len(batches), len(knots)))
    for row, batch in enumerate(batches):
        values, times = np.unique(batch.counts, return_counts=True)
        share = (values[:, None] - edges[:-1]) / np.diff(edges)
        # The last segment goes on beyond its end.
        filled[row] = times @ np.clip(share, 0.0, np.append(np.ones(len(knots) - 1), np.inf))
        filled[row] /= len(batch.counts)
    return filled


def _even(copies: int, active: int, experts: int) -> Counts:
    each, rest = divmod(copies, active)
    counts = np.zeros(experts, dtype=np.int64)
    counts[:active] = each
    counts[:rest] += 1
    return counts
