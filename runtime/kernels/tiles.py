"""Tile configurations of the Triton expert kernels: the choices, what fits, a rule of thumb.

A configuration is a flat dict of whole numbers, as it stands in a dataset and in a cost table. The
best one is measured (`costprof sweep --search tiles`) and taken from the table; the rule of thumb
serves until then. It is never searched for while serving.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from costprof.core.errors import InputError
from costprof.core.expert import DTYPE_BYTES, INT4_GROUP_SIZE, ExpertClass

TILE_SPACE: dict[str, tuple[int, ...]] = {
    "BLOCK_M": (16, 32, 64, 128),
    "BLOCK_N": (32, 64, 128, 256),
    "BLOCK_K": (32, 64, 128, 256),
    "GROUP_M": (1, 8, 32),
    "num_warps": (4, 8),
    "num_stages": (2, 3, 4, 5),
    "persistent": (0, 1, 2),
}
"""Every value a parameter may take in a search."""

LARGEST_SHARED_BYTES = 227 * 1024
"""Shared memory a thread block may have where it is largest: compute capability 9.0 and 10.0."""

_REGISTERS = 255
_WEIGHT_BYTES = {"int8": 1.0, "fp8": 1.0, "int4": 0.5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One configuration, for both projections of an expert.

    Attributes:
        BLOCK_M, BLOCK_N, BLOCK_K: Rows, columns and depth of a tile.
        GROUP_M: Row tiles walked together before the next column, to share weights in L2.
        num_warps: Warps of a thread block.
        num_stages: Depth of the load pipeline.
        persistent: 0 for one program a tile; else programs a multiprocessor that take tile after
            tile.
    """

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    GROUP_M: int = 8
    num_warps: int = 4
    num_stages: int = 3
    persistent: int = 0

    def to_dict(self) -> dict[str, int]:
        """Return the flat dict a dataset holds."""
        return dataclasses.asdict(self)


RULE_OF_THUMB = (
    Tile(BLOCK_M=16, BLOCK_N=32, BLOCK_K=128, GROUP_M=1, num_warps=4, num_stages=4),
    Tile(BLOCK_M=32, BLOCK_N=64, BLOCK_K=64, GROUP_M=1, num_warps=4, num_stages=4),
    Tile(BLOCK_M=64, BLOCK_N=64, BLOCK_K=64, GROUP_M=8, num_warps=4, num_stages=3),
    Tile(BLOCK_M=128, BLOCK_N=128, BLOCK_K=64, GROUP_M=8, num_warps=8, num_stages=3),
)
"""By rows an expert: up to 16, 32, 64, and more. None of them spills registers."""

BEFORE_HOPPER = Tile(BLOCK_M=128, BLOCK_N=64, BLOCK_K=64, GROUP_M=8, num_warps=8, num_stages=3)
"""In place of the last one where two 128 × 128 products do not fit: before Hopper, and on consumer
GPUs of compute capability 12, which have 99 KiB of shared memory for a thread block."""

FLOAT32 = (
    Tile(BLOCK_M=16, BLOCK_N=32, BLOCK_K=64, GROUP_M=1, num_warps=4, num_stages=3),
    Tile(BLOCK_M=64, BLOCK_N=64, BLOCK_K=32, GROUP_M=8, num_warps=8, num_stages=3),
)
"""Without tensor cores: full float32 products are computed on the plain ones."""


def rule_of_thumb(capability: int, dtype: torch.dtype) -> tuple[Tile, ...]:
    """The tiles for activations of `dtype` on a GPU of a compute capability (times ten)."""
    if dtype == torch.float32:
        return FLOAT32
    if 90 <= capability < 120:
        return RULE_OF_THUMB
    return (*RULE_OF_THUMB[:-1], BEFORE_HOPPER)


def choose_tile(
    config: Mapping[str, int], rows_per_expert: float, capability: int, dtype: torch.dtype
) -> Tile:
    """Return the tile `config` names, what it leaves out filled in by the rule of thumb.

    Args:
        config: Tile parameters by name; may be empty.
        rows_per_expert: Mean rows of an expert, from shapes: the counts stay on the device.
        capability: Compute capability of the GPU, times ten.
        dtype: Of the activations.

    Raises:
        InputError: `config` has a parameter that no tile has.
    """
    unknown = set(config) - set(TILE_SPACE)
    if unknown:
        raise InputError(
            f"tile parameter {min(unknown)!r} is unknown",
            "the kernel was not run",
            f"use {', '.join(TILE_SPACE)}",
        )
    tiles = rule_of_thumb(capability, dtype)
    fitting = (tile for tile in tiles if rows_per_expert <= tile.BLOCK_M)
    return dataclasses.replace(next(fitting, tiles[-1]), **config)


def tile_allowed(
    config: Mapping[str, int], expert: ExpertClass, *, shared_bytes: int = LARGEST_SHARED_BYTES
) -> bool:
    """Whether a configuration can work and could be good for `expert`.

    Left out: what needs more shared memory than the `shared_bytes` of a thread block, accumulators
    that need more registers than there are, and depths that split a group of 4-bit weights.
    """
    tile = Tile(**{**RULE_OF_THUMB[0].to_dict(), **config})
    if expert.quantisation == "int4" and tile.BLOCK_K % INT4_GROUP_SIZE:
        return False
    gated = 2 if expert.activation == "swiglu" else 1
    accumulators = gated * tile.BLOCK_M * tile.BLOCK_N / (32 * tile.num_warps)
    return accumulators < _REGISTERS / 2 + 1 and pipeline_bytes(tile, expert) <= shared_bytes


def pipeline_bytes(tile: Tile, expert: ExpertClass) -> float:
    """Shared memory of the load pipeline: tiles of x and of the weights, `num_stages` deep.

    Weights that are widened need a dense tile besides. An upper bound: some generations keep one
    stage in registers.
    """
    wide = DTYPE_BYTES[expert.dtype]
    weights = tile.BLOCK_N * tile.BLOCK_K * (2 if expert.activation == "swiglu" else 1)
    stored = _WEIGHT_BYTES.get(expert.quantisation, float(wide))
    x = tile.BLOCK_M * tile.BLOCK_K * wide
    widened = 0 if expert.quantisation == "none" else weights * wide
    return tile.num_stages * (x + weights * stored) + widened
