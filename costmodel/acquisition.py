"""Choose the tile configs to measure next from those measured so far.

A search covers one expert class at several token counts; what one token count teaches serves the
others. Pure functions of the measurements and a seed: the same rows lead to the same choice, so an
interrupted search goes on by choosing again.

How it chooses. It starts with `start` configs at each token count: half far apart in the space,
half those that tile arithmetic holds for good, a different lot at each token count. From then on a
Gaussian process (`tile_process`) is fitted to log latency, and the config with the largest expected
improvement over the best one measured (Jones et al. 1998, eq. 15) is next, weighted by how likely
it is to run at all, given what failed. Further ones of a batch are chosen as if
the earlier had turned out as expected.

When it stops. A token count is done when the expected gain of measuring on until its budget is used
up is well below the noise: E[max(best - min y, 0)] over the most promising configs that the budget
allows, each an independent normal with its own luck in it, is less than a tenth of the median
standard deviation of the log latencies measured there. It is also done when the budget is used up
or nothing is left.

What wins is the config of least *posterior mean* among the measured, not of least reading: of many
noisy readings the smallest is too small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from costprof.costmodel.features import Array
from costprof.costmodel.tile_process import TileProcess
from costprof.costmodel.tile_space import Measured, TileSpace, start_set

__all__ = [
    "Choice",
    "Measured",
    "Stop",
    "TileSpace",
    "choose",
    "expected_improvement",
    "joint_improvement",
    "start_set",
]

Stop = Literal["gain below noise", "budget used", "all measured"]

_START = 8
_BEND = 0.35
"""Log latencies further than about this above the best are bent together: how bad is irrelevant."""

_NEGLIGIBLE = 0.1
"""Share of the noise below which an expected gain is not worth measuring for: by Markov's
inequality a gain of the size of the noise is then one case in ten at most."""

_TRUST_IN_FAILURES = 100.0
"""Inverse strength of the prior that keeps the regression of failures from certainty."""

_SHORTLIST = 200
"""Most promising configs among which the rest of a batch is chosen."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What to do next.

    Attributes:
        next: (token count, config) pairs to measure, by index; empty when all are done.
        best: Config of least expected latency at each token count, None where none ran.
        gain: Expected gain of using up the budget at each token count, as a share of the latency
            (where it is used up, of one more batch); None before the model can say.
        stopped: Why a token count is done, None where it is not.
    """

    next: tuple[tuple[int, int], ...]
    best: tuple[int | None, ...]
    gain: tuple[float | None, ...]
    stopped: tuple[Stop | None, ...]


def choose(
    space: TileSpace,
    measured: Sequence[Measured],
    *,
    budget: int,
    batch: int = 1,
    start: int = _START,
    seed: int = 0,
) -> Choice:
    """Return what to measure next, given what was `measured`.

    Args:
        space: The candidates.
        measured: Each (token count, config) at most once.
        budget: Measurements allowed at each token count, failures included.
        batch: How many to propose at each token count that is not done.
        start: Measurements at each token count before the model is asked.
        seed: Of the start set.
    """
    counts = [sum(m.tokens == t for m in measured) for t in range(len(space.problems))]
    limit = min(budget, len(space.configs))
    begun = start_set(space, min(start, limit), seed)
    taken = {(m.tokens, m.config) for m in measured}
    waiting = [pair for pair in begun if pair not in taken and counts[pair[0]] < limit]
    runs = [m for m in measured if m.latency_us is not None]
    if waiting or not runs:
        # Where all of the start failed, go on with the next ones of a longer start.
        more = (
            waiting
            or [
                pair
                for pair in start_set(space, limit, seed)
                if pair not in taken and counts[pair[0]] < limit
            ][: batch * len(space.problems)]
        )
        done: tuple[Stop | None, ...] = (None,) * len(space.problems)
        if not more:
            done = tuple(_full(space, count) for count in counts)
        nothing = (None,) * len(space.problems)
        return Choice(tuple(more), _best_readings(space, runs), nothing, done)
    # One thread: sums in the same order give the same choice, and the matrices are small.
    with threadpool_limits(limits=1):
        return _choose_by_model(space, measured, counts, limit, batch)


def _choose_by_model(
    space: TileSpace, measured: Sequence[Measured], counts: list[int], limit: int, batch: int
) -> Choice:
    ran = [m for m in measured if m.latency_us is not None]
    process = _fitted(space, ran)
    best, value, noise = _incumbents(space, process, ran)
    chances = _run_chances(space, measured)
    gain: list[float | None] = [None] * len(space.problems)
    stopped: list[Stop | None] = [None] * len(space.problems)
    proposed: list[tuple[int, int]] = []
    for tokens in range(len(space.problems)):
        left = limit - counts[tokens]
        stopped[tokens] = _full(space, counts[tokens]) if left <= 0 else None
        open_to = np.ones(len(space.configs), bool)
        open_to[[m.config for m in measured if m.tokens == tokens]] = False
        candidates = np.flatnonzero(open_to)
        if not len(candidates):
            continue
        mean, std = _predicted(space, process, tokens, candidates)
        improvement = expected_improvement(mean, std, value[tokens]) * chances[tokens, candidates]
        order = np.argsort(-improvement, kind="stable")
        most = order[: max(left, batch)]
        to_gain = joint_improvement(mean[most], std[most], value[tokens])
        gain[tokens] = to_gain
        if stopped[tokens] is None and to_gain < _NEGLIGIBLE * noise[tokens]:
            stopped[tokens] = "gain below noise"
        if stopped[tokens] is None:
            wanted = min(batch, left, len(candidates))
            few = candidates[order[:_SHORTLIST]]
            chosen = _batch(
                space, process, tokens, few, chances[tokens, few], value[tokens], wanted
            )
            proposed += [(tokens, config) for config in chosen]
    return Choice(tuple(proposed), tuple(best), tuple(gain), tuple(stopped))


def _batch(
    space: TileSpace,
    process: TileProcess,
    tokens: int,
    candidates: npt.NDArray[np.int64],
    chances: Array,
    best: float,
    wanted: int,
) -> list[int]:
    """Return `wanted` of the `candidates`, best first, each given that those before came true."""
    chosen = [int(candidates[0])]
    while len(chosen) < wanted:
        last = chosen[-1:]
        process = process.believing(
            space.x[tokens, last], space.physics[tokens, last], np.array([float(tokens)])
        )
        mean, std = _predicted(space, process, tokens, candidates)
        improvement = expected_improvement(mean, std, best) * chances
        improvement[np.isin(candidates, chosen)] = -1.0
        chosen.append(int(candidates[improvement.argmax()]))
    return chosen


def _predicted(
    space: TileSpace, process: TileProcess, tokens: int, configs: npt.NDArray[np.int64]
) -> tuple[Array, Array]:
    group = np.full(len(configs), float(tokens))
    return process.predict(space.x[tokens, configs], space.physics[tokens, configs], group)


def expected_improvement(mean: Array, std: Array, best: float) -> Array:
    """Return E[max(best - y, 0)] for y ~ N(mean, std²), elementwise."""
    z = (best - mean) / std
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    return np.asarray(std * (z * ndtr(z) + density))


def joint_improvement(mean: Array, std: Array, best: float) -> float:
    """Return E[max(best - min y, 0)], the gain of measuring all, for independent y ~ N(mean, std²).

    The integral of P(min y < v) over v below `best`, by the midpoint rule.
    """
    if not len(mean):
        return 0.0
    low = min(best, float((mean - 6 * std).min()))
    step = (best - low) / 400
    at = best - step * (np.arange(400) + 0.5)
    none_below = np.prod(ndtr((mean[:, None] - at[None, :]) / std[:, None]), axis=0)
    return float(step * np.sum(1 - none_below))


def _fitted(space: TileSpace, ran: Sequence[Measured]) -> TileProcess:
    group = np.array([m.tokens for m in ran], dtype=np.float64)
    y = np.log([m.latency_us for m in ran if m.latency_us is not None])
    for tokens in np.unique(group):
        y[group == tokens] -= y[group == tokens].min()
    return TileProcess.fit(
        np.stack([space.x[m.tokens, m.config] for m in ran]),
        np.array([space.physics[m.tokens, m.config] for m in ran]),
        group,
        _BEND * np.log1p(y / _BEND),
        np.array([m.variance for m in ran]),
    )


def _incumbents(
    space: TileSpace, process: TileProcess, ran: Sequence[Measured]
) -> tuple[list[int | None], list[float], list[float]]:
    """Return each token count's best measured config, its expected y, and the median noise std."""
    expected = process.at_measured()
    best: list[int | None] = []
    value: list[float] = []
    noise: list[float] = []
    for tokens in range(len(space.problems)):
        mine = [i for i, m in enumerate(ran) if m.tokens == tokens]
        if not mine:
            best.append(None)
            value.append(0.0)
            noise.append(0.0)
            continue
        winner = min(mine, key=lambda i: (expected[i], ran[i].config))
        best.append(ran[winner].config)
        value.append(float(expected[winner]))
        noise.append(float(np.median([ran[i].variance for i in mine])) ** 0.5)
    return best, value, noise


def _run_chances(space: TileSpace, measured: Sequence[Measured]) -> Array:
    """Return how likely each config is to run: [token counts, configs].

    A logistic regression: what makes a config fail, too much shared memory or too many registers,
    grows with the parameters and the tile arithmetic.
    """
    ran = np.array([m.latency_us is not None for m in measured])
    if ran.all() or not ran.any():
        return np.ones(space.x.shape[:2])
    model = LogisticRegression(C=_TRUST_IN_FAILURES, max_iter=1000)
    model.fit(np.stack([space.x[m.tokens, m.config] for m in measured]), ran)
    flat = space.x.reshape(-1, space.x.shape[2])
    return np.asarray(model.predict_proba(flat)[:, 1]).reshape(space.x.shape[:2])


def _best_readings(space: TileSpace, ran: Sequence[Measured]) -> tuple[int | None, ...]:
    best: list[int | None] = []
    for tokens in range(len(space.problems)):
        mine = [(m.latency_us, m.config) for m in ran if m.tokens == tokens]
        best.append(min(mine)[1] if mine else None)
    return tuple(best)


def _full(space: TileSpace, count: int) -> Stop:
    return "all measured" if count >= len(space.configs) else "budget used"
