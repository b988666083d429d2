"""What a tile config looks like to the model: its parameters as numbers, and tile arithmetic.

Everything follows from shapes and choices; nothing here was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from costprof.costmodel.features import Array

Config = Mapping[str, int]

_MOST_CATEGORIES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TileProblem:
    """The matrix product that is cut into tiles, at one token count.

    `rows` are the rows of each active expert (one entry for a single expert), `columns` and
    `depth` the output width and reduction length, `units` the device's multiprocessors or cores,
    `value_bytes` the size of a stored value.
    """

    tokens: int
    rows: tuple[int, ...]
    columns: int
    depth: int
    units: int
    value_bytes: float


def encode(choices: Mapping[str, Sequence[int]], configs: Sequence[Config]) -> Array:
    """Return the parameters of `configs` as [configs, features], each feature within [0, 1].

    A parameter whose choices are all powers of two is taken by its logarithm. One with two
    choices is a flag. Codes 0, 1, 2 … are categories (a loop order), one flag each. Anything else
    (num_stages 2 … 5) is a number.
    """
    columns: list[Array] = []
    for name, values in choices.items():
        known = np.array(sorted(set(values)), dtype=np.float64)
        taken = np.array([config[name] for config in configs], dtype=np.float64)
        if len(known) < 2:
            continue
        if len(known) > 2 and _are_codes(known):
            columns += [(taken == code).astype(np.float64) for code in known]
            continue
        if all(value > 0 and int(value) & (int(value) - 1) == 0 for value in known):
            known, taken = np.log2(known), np.log2(taken)
        columns.append((taken - known[0]) / (known[-1] - known[0]))
    if not columns:
        return np.zeros((len(configs), 0))
    return np.stack(columns, axis=1)


def tile_features(problem: TileProblem, configs: Sequence[Config]) -> Array:
    """Return tile arithmetic of `configs` [configs, 4], or [configs, 0] without block sizes.

    log2 of: padding (computed rows x columns / asked ones), waves over the units, bytes of the
    tiles of all stages, operations per byte of a tile.
    """
    if not _has_blocks(configs):
        return np.zeros((len(configs), 0))
    block_m, block_n, block_k = _blocks(configs)
    stages = np.array([config.get("num_stages", 1) for config in configs], dtype=np.float64)
    row_tiles = _row_tiles(problem, block_m)
    column_tiles = np.ceil(problem.columns / block_n)
    padded = row_tiles * block_m * column_tiles * block_n
    tile_bytes = (block_m + block_n) * block_k * problem.value_bytes
    features = np.log2(
        np.stack(
            [
                padded / (sum(problem.rows) * problem.columns),
                np.maximum(row_tiles * column_tiles / problem.units, 1 / problem.units),
                stages * tile_bytes,
                2 * block_m * block_n * block_k / tile_bytes,
            ],
            axis=1,
        )
    )
    return np.asarray(features)


def physics_estimate(problem: TileProblem, configs: Sequence[Config]) -> Array:
    """Return a crude log cost of each config [configs], right up to a constant; 0 without blocks.

    Half the logarithm of padded arithmetic in whole waves, half that of the bytes all tiles bring
    in: a tile of m x n reads m + n values a step. Real kernels stray from it by large factors, so
    the model learns how much of it to believe.
    """
    if not _has_blocks(configs):
        return np.zeros(len(configs))
    block_m, block_n, _ = _blocks(configs)
    tiles = _row_tiles(problem, block_m) * np.ceil(problem.columns / block_n)
    waves = np.ceil(tiles / problem.units)
    arithmetic = waves * block_m * block_n
    traffic = tiles * (block_m + block_n)
    cost = 0.5 * np.log(arithmetic) + 0.5 * np.log(traffic)
    return np.asarray(cost - cost.mean())


def _has_blocks(configs: Sequence[Config]) -> bool:
    return bool(configs) and all(
        name in config for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K") for config in configs
    )


def _blocks(configs: Sequence[Config]) -> tuple[Array, Array, Array]:
    values = np.array(
        [[config[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K")] for config in configs],
        dtype=np.float64,
    )
    return values[:, 0], values[:, 1], values[:, 2]


def _row_tiles(problem: TileProblem, block_m: Array) -> Array:
    rows = np.array(problem.rows, dtype=np.float64)
    return np.asarray(np.ceil(rows[None, :] / block_m[:, None]).sum(axis=1))


def _are_codes(known: Array) -> bool:
    return len(known) <= _MOST_CATEGORIES and bool(np.array_equal(known, np.arange(len(known))))
