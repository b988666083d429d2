"""How many tokens each expert of one rank receives, for a batch whose routing is only named.

Public measurements say of a layer's routing no more than `balanced` or `power_law_1.2`. What a
kernel does depends on the counts: which experts are awake, how far they fill their tiles. So the
counts are drawn again, by the rules of the generator that made the measured batches
(aiconfigurator's collector), from a fixed seed, and averaged.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from costprof.core.errors import InputError

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

TILE_ROWS = (16, 32, 64, 128)
"""Rows a tile may have; what is padded to each is counted."""

DRAWS = 24
_BUSY = 0.8  # the largest share of a batch's tokens that a power law gives one expert


@dataclass(frozen=True, slots=True)
class RankLoad:
    """What the rank under measurement gets of each of n batches; means over draws, all [n].

    Attributes:
        assignments: Token copies its experts receive.
        active: Experts that receive any.
        busiest: Tokens of its busiest expert.
        tiles: Tiles of `TILE_ROWS[j]` rows that its experts fill or begin: [n, len(TILE_ROWS)].
        spread: Relative standard deviation of the work between draws; 0 where nothing is drawn.
    """

    assignments: Array
    active: Array
    busiest: Array
    tiles: Array
    spread: Array

    def take(self, index: npt.NDArray[Any]) -> RankLoad:
        """Return the batches at `index` (positions or a mask)."""
        return RankLoad(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def rank_load(
    tokens: npt.ArrayLike,
    experts: npt.ArrayLike,
    top_k: npt.ArrayLike,
    ep_size: npt.ArrayLike,
    distribution: Sequence[str],
) -> RankLoad:
    """Return the load of the busiest rank for n batches of `tokens` [n], routed as named.

    Every argument has n members; `experts` counts those of all `ep_size` ranks.

    Raises:
        InputError: a distribution is neither `balanced` nor `power_law_A`.
    """
    keys = list(
        zip(
            np.asarray(tokens).tolist(),
            np.asarray(experts).tolist(),
            np.asarray(top_k).tolist(),
            np.asarray(ep_size).tolist(),
            distribution,
            strict=True,
        )
    )
    known = {key: _summary(rank_counts(*key)) for key in dict.fromkeys(keys)}
    return _loads([known[key] for key in keys])


def load_of_counts(counts: Sequence[Counts]) -> RankLoad:
    """Return the load of n batches whose counts are known, draws of each: n times [draws, E]."""
    return _loads([_summary(each) for each in counts])


def _loads(summaries: list[list[float]]) -> RankLoad:
    values = np.array(summaries, dtype=np.float64).reshape(len(summaries), 4 + len(TILE_ROWS))
    return RankLoad(
        assignments=values[:, 0],
        active=values[:, 1],
        busiest=values[:, 2],
        spread=values[:, 3],
        tiles=values[:, 4:],
    )


def rank_counts(
    tokens: int, experts: int, top_k: int, ep_size: int, distribution: str, draws: int = DRAWS
) -> Counts:
    """Return counts of the rank's experts: [draws, experts / ep_size], [1, …] where balanced.

    >>> rank_counts(4, 8, 2, 1, "balanced").tolist()
    [[1, 1, 1, 1, 1, 1, 1, 1]]

    Raises:
        InputError: an unknown distribution.
    """
    if distribution == "balanced":
        return _balanced(tokens, experts, top_k)[: experts // ep_size][None]
    match = re.fullmatch(r"power_law_(\d+(?:\.\d+)?)", distribution)
    if match is None or float(match[1]) == 1.0:
        raise InputError(
            f"distribution {distribution!r} is unknown",
            "the layer cannot be priced",
            "use balanced or power_law_A with an exponent A other than 1",
        )
    counts = _power_law(tokens, experts, top_k, ep_size, float(match[1]), draws)
    ranks = counts.reshape(draws, ep_size, experts // ep_size)
    # The slowest rank decides how long a layer takes, and is the one measured.
    return np.asarray(ranks[np.arange(draws), ranks.sum(axis=2).argmax(axis=1)])


def _balanced(tokens: int, experts: int, top_k: int) -> Counts:
    """Token t's jth expert lies j strides on from t; few tokens are themselves spread out."""
    stride = -(-experts // top_k)
    if (top_k - 1) * stride >= experts:  # the last would come round to the first again
        stride = experts // top_k
    if tokens < stride:
        start = np.arange(tokens, dtype=np.float64) * (stride / tokens)
        chosen = (start[:, None] + np.arange(top_k) * stride) % experts
        counts: Counts = np.bincount(chosen.astype(np.int64).ravel(), minlength=experts)
        return counts
    # As many tokens as there are experts give each of them top_k; of the rest, the jth choices are
    # neighbours. Runs are counted by where they begin and end, on a circle laid out twice.
    rounds, rest = divmod(tokens, experts)
    begin = np.arange(top_k) * stride
    ends = np.bincount(begin + rest, minlength=2 * experts)
    running = (np.bincount(begin, minlength=2 * experts) - ends).cumsum()
    return np.asarray(rounds * top_k + running[:experts] + running[experts:])


def _power_law(
    tokens: int, experts: int, top_k: int, ep_size: int, exponent: float, draws: int
) -> Counts:
    """Draw shares from a truncated power law by its inverse distribution, then make them whole."""
    low, high = (1.0, _BUSY * tokens) if tokens * top_k > experts else (0.01, 2.0)
    power = 1.0 - exponent
    uniform = np.random.default_rng(0).random((draws, experts))
    shares = ((high**power - low**power) * uniform + low**power) ** (1.0 / power)
    shares /= shares.sum(axis=1, keepdims=True)
    counts: Counts = np.minimum(np.rint(shares * tokens * top_k).astype(np.int64), tokens)
    for draw in counts:
        missing = tokens * top_k - int(draw.sum())
        ranks = draw.reshape(ep_size, -1)
        for rank, share in zip(ranks, _even(abs(missing), ep_size), strict=True):
            if share:
                _level(rank, share if missing > 0 else -share, tokens)
    return counts


def _even(total: int, parts: int) -> list[int]:
    share, rest = divmod(total, parts)
    return [share + (part < rest) for part in range(parts)]


def _level(counts: Counts, change: int, limit: int) -> None:
    """Add to the smallest counts, or take from the largest, in place, until all are level."""
    step = 1 if change > 0 else -1
    bound = limit if step > 0 else 0
    heights = counts if step > 0 else -counts
    ordered = heights.copy()
    ordered.sort()
    total = ordered.cumsum()
    # What it takes to bring all lower ones up to each.
    room = ordered * np.arange(1, len(ordered) + 1) - total
    reached = int(room.searchsorted(abs(change), side="right"))
    at = (heights <= ordered[reached - 1]).nonzero()[0]
    level, rest = divmod(abs(change) + int(total[reached - 1]), reached)
    if level >= bound:
        level, rest = bound, 0
    counts[at] = level * step
    if rest:
        counts[at[:rest]] += step


def _summary(counts: Counts) -> list[float]:
    active = (counts > 0).sum(axis=1)
    total = counts.sum(axis=1)
    spread = np.hypot(_relative_spread(active), _relative_spread(total))
    tiles = [float((-(-counts // rows)).sum(axis=1).mean()) for rows in TILE_ROWS]
    return [
        float(total.mean()),
        float(active.mean()),
        float(counts.max(axis=1).mean()),
        float(spread),
        *tiles,
    ]


def _relative_spread(values: Counts) -> float:
    return float(np.log(np.maximum(values, 1)).std())
