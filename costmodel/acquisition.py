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
allows, each an independent normal with its own luck in it, is less than a quarter of the median
standard deviation of the log latencies measured there. It is also done when the budget is used up
or nothing is left.

What wins is the config of least *posterior mean* among the measured, not of least reading: of many
noisy readings the smallest is too small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy.special import ndtr
from sklearn.linear_model import LogisticRegression

from costprof.costmodel.features import Array
from costprof.costmodel.tile_features import (
    TileProblem,
    encode,
    physics_estimate,
    tile_features,
)
from costprof.costmodel.tile_process import TileProcess

Stop = Literal["gain below noise", "budget used", "all measured"]

_START = 8
_BEND = 0.35
"""Log latencies further than about this above the best are bent together: how bad is irrelevant."""

_NEGLIGIBLE = 0.25
"""Share of the noise below which an expected gain is not worth measuring for: by Markov's
inequality a gain of the size of the noise is then one case in four at most."""

_TRUST_IN_FAILURES = 100.0
"""Inverse strength of the prior that keeps the regression of failures from certainty."""

_LEVELS_OF_TOKENS = 0.15
"""A factor of two in tokens is as far apart as this share of a parameter's whole range."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One measurement: which config at which token count, by index into the `TileSpace`.

    `latency_us` is None where the config failed; `variance` is that of the log of the latency.
    """

    tokens: int
    config: int
    latency_us: float | None
    variance: float = 1e-4


@dataclass(frozen=True)
class TileSpace:
    """What can be measured of one class.

    Attributes:
        choices: Each parameter's choices.
        configs: The members of their product that can work.
        problems: The matrix product at each token count, ascending in tokens.
    """

    choices: Mapping[str, Sequence[int]]
    configs: Sequence[Mapping[str, int]]
    problems: Sequence[TileProblem]
    x: Array = field(init=False, repr=False)
    physics: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        encoded = encode(self.choices, self.configs)
        parts = [tile_features(problem, self.configs) for problem in self.problems]
        arithmetic = _unit_range(np.stack(parts))
        level = np.log2([problem.tokens for problem in self.problems]) * _LEVELS_OF_TOKENS
        shape = (len(self.problems), len(self.configs))
        x = np.concatenate(
            [
                np.broadcast_to(encoded, (*shape, encoded.shape[1])),
                arithmetic,
                np.broadcast_to(level[:, None, None], (*shape, 1)),
            ],
            axis=2,
        )
        physics = np.stack([physics_estimate(p, self.configs) for p in self.problems])
        object.__setattr__(self, "x", x)  # [token counts, configs, features]
        object.__setattr__(self, "physics", physics)  # [token counts, configs]


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
    return _choose_by_model(space, measured, counts, limit, batch)


def start_set(space: TileSpace, count: int, seed: int) -> list[tuple[int, int]]:
    """Return `count` (token count, config) pairs a token count, no config twice if avoidable."""
    draw = np.random.default_rng(seed)
    encoded = encode(space.choices, space.configs)
    chosen: list[tuple[int, int]] = []
    for tokens in range(len(space.problems)):
        mine: list[int] = []
        others = [config for _, config in chosen]
        ranks = np.argsort(np.argsort(space.physics[tokens])) / len(space.configs)
        for number in range(count):
            promising = number % 2 == 1
            # Physics points at a region, not at a config: any of its best fifth will do.
            allowed = ranks <= 0.2 if promising else np.ones(len(ranks), bool)
            far = _distance_to(encoded, mine, others) + 1e-3 * draw.random(len(ranks))
            far[mine] = -1.0
            far[~allowed] -= 10.0
            mine.append(int(far.argmax()))
        chosen += [(tokens, config) for config in mine]
    return chosen


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
        open_to = np.ones(len(space.configs), bool)
        open_to[[m.config for m in measured if m.tokens == tokens]] = False
        candidates = np.flatnonzero(open_to)
        stopped[tokens] = _full(space, counts[tokens]) if counts[tokens] >= limit else None
        if not len(candidates):
            continue
        belief = process
        for number in range(max(1, min(batch, limit - counts[tokens]))):
            x, physics = space.x[tokens, candidates], space.physics[tokens, candidates]
            group = np.full(len(candidates), float(tokens))
            improvement = expected_improvement(*belief.predict(x, physics, group), value[tokens])
            improvement *= chances[tokens, candidates]
            top = int(improvement.argmax())
            if number == 0:
                left = max(limit - counts[tokens], batch)
                rest = np.argsort(-improvement)[:left]
                mean, std = belief.predict(x[rest], physics[rest], group[rest])
                left_to_gain = joint_improvement(mean, std, value[tokens])
                gain[tokens] = left_to_gain
                if stopped[tokens] is None and left_to_gain < _NEGLIGIBLE * noise[tokens]:
                    stopped[tokens] = "gain below noise"
                if stopped[tokens] is not None:
                    break
            proposed.append((tokens, int(candidates[top])))
            belief = belief.believing(x[[top]], physics[[top]], group[[top]])
            candidates = np.delete(candidates, top)
            if not len(candidates):
                break
    return Choice(tuple(proposed), tuple(best), tuple(gain), tuple(stopped))


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


def _distance_to(encoded: Array, mine: list[int], others: list[int]) -> Array:
    """Return the distance of each config to the nearest of `mine`; those of `others` count half."""
    far = np.full(len(encoded), float(encoded.shape[1]))
    for chosen, share in ((mine, 1.0), (others, 2.0)):
        for index in chosen:
            distance = np.linalg.norm(encoded - encoded[index], axis=1)
            far = np.minimum(far, share * distance)
    return far


def _unit_range(values: Array) -> Array:
    """Return `values` [..., features] scaled so that each feature spans [0, 1]."""
    low, high = values.min(axis=(0, 1)), values.max(axis=(0, 1))
    return np.asarray((values - low) / np.where(high > low, high - low, 1.0))
