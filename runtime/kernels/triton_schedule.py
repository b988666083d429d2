"""Which rows of which expert each tile of a grouped product covers, worked out on the device.

Token counts stay on the GPU: nothing waits for the host, and a layer can be captured in a CUDA
graph and replayed with other counts. An expert without tokens gets no tile, so its weights are
never read.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_T = 32
"""Tiles that a program lists."""


class Schedule(NamedTuple):
    """Tiles of at most BLOCK_M rows, each within one expert.

    Attributes:
        tiles: [max_tiles, 3] int32: expert, first row, end of the expert's rows. Only the first
            `n_tiles` are written.
        n_tiles: [1] int32.
        max_tiles: Upper bound of the number of tiles, known from shapes alone.
    """

    tiles: Tensor
    n_tiles: Tensor
    max_tiles: int


def schedule_tiles(counts: Tensor, rows: int, block_m: int) -> Schedule:
    """List the tiles of `rows` rows sorted by expert, of which `counts[e]` are expert `e`'s.

    There are Σ ⌈counts[e] / BLOCK_M⌉ tiles, at most ⌊rows / BLOCK_M⌋ + min(E, rows).

    Args:
        counts: [E] int32; together at most `rows`, which is not checked: that would wait for the
            device.
        rows: Rows there are room for.
        block_m: Rows of a tile.
    """
    experts = counts.shape[0]
    max_tiles = rows // block_m + min(experts, rows)
    width = triton.next_power_of_2(experts)
    tiles = torch.empty(max_tiles, 3, dtype=torch.int32, device=counts.device)
    n_tiles = torch.empty(1, dtype=torch.int32, device=counts.device)
    list_tiles[(max(1, triton.cdiv(max_tiles, BLOCK_T)),)](
        counts,
        tiles,
        n_tiles,
        experts,
        BLOCK_M=block_m,
        EXPERTS=width,
        BLOCK_T=BLOCK_T,
        num_warps=schedule_warps(width),
    )
    return Schedule(tiles, n_tiles, max_tiles)


def schedule_warps(width: int) -> int:
    """Warps of a program over `width` experts: on four, 512 would not fit into the registers."""
    return 4 if width <= 256 else 8


@triton.jit  # type: ignore[untyped-decorator]
def list_tiles(  # type: ignore[no-untyped-def]
    counts,
    tiles,
    n_tiles,
    experts,
    BLOCK_M: tl.constexpr,
    EXPERTS: tl.constexpr,  # a power of two, at least `experts`
    BLOCK_T: tl.constexpr,
):
    """Write BLOCK_T tiles a program; every program adds the counts up for itself."""
    expert = tl.arange(0, EXPERTS)
    count = tl.load(counts + expert, mask=expert < experts, other=0)
    tile_count = (count + BLOCK_M - 1) // BLOCK_M
    tile_end = tl.cumsum(tile_count, 0)
    total = tl.sum(tile_count, 0)
    tile = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    passed = tile_end[None, :] <= tile[:, None]  # [BLOCK_T, EXPERTS]
    owner = tl.sum(passed.to(tl.int32), 1)
    first_tile = tl.sum(tl.where(passed, tile_count[None, :], 0), 1)
    first_row = tl.sum(tl.where(passed, count[None, :], 0), 1)
    own_count = tl.sum(tl.where(expert[None, :] == owner[:, None], count[None, :], 0), 1)
    exists = tile < total
    tl.store(tiles + tile * 3, owner, mask=exists)
    tl.store(tiles + tile * 3 + 1, first_row + (tile - first_tile) * BLOCK_M, mask=exists)
    tl.store(tiles + tile * 3 + 2, first_row + own_count, mask=exists)
    if tl.program_id(0) == 0:
        tl.store(n_tiles, total)
