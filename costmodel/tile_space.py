"""What a search of tile configs can measure, what it has measured, and where it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from costprof.costmodel.features import Array
from costprof.costmodel.tile_features import (
    TileProblem,
    encode,
    physics_estimate,
    tile_features,
)

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
