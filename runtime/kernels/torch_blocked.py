"""Feed-forward kernels for a CPU in explicit tiles, so that a tile config really decides the time.

Weights are stored in the expert's dtype and multiplied in float32, a tile at a time: a tile of
half-precision weights is widened just before its product. Small tiles cost calls, large ones fall
out of the caches before they are used, and the loop order decides how often a tile is widened
again. Shapes as in `torch_ffn`; outputs have the dtype of `x`. Parameters:

- `BLOCK_M`, `BLOCK_N`, `BLOCK_K`: rows, output columns and reduction length of a tile. In
  `swiglu`, `BLOCK_N` are the columns of the hidden layer that are made and used up at a time.
- `ORDER`: the loops from the outermost in; see each kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from costprof.core.errors import InputError
from costprof.core.expert import ExpertClass
from costprof.core.work import fc1_width

TILE_SPACE: Mapping[str, tuple[int, ...]] = {
    "BLOCK_M": (8, 16, 32, 64, 128),
    "BLOCK_N": (32, 64, 128, 256, 512, 1024),
    "BLOCK_K": (32, 64, 128, 256, 512, 1024),
    "ORDER": (0, 1, 2),
}
"""Each tile parameter's choices: 540 configs."""

_Function = Callable[..., Tensor]


def _tiled(columns: Callable[[ExpertClass], int]) -> Callable[[_Function], _Function]:
    """Give a kernel its tile space; `columns` of an expert is what `BLOCK_N` divides."""

    def allowed(config: dict[str, int], expert: ExpertClass) -> bool:
        """Return whether no tile is larger than the matrix; larger ones would only repeat it."""
        sizes = {"BLOCK_N": columns(expert), "BLOCK_K": expert.d_model}
        return all(config[name] <= max(size, TILE_SPACE[name][0]) for name, size in sizes.items())

    def mark(function: _Function) -> _Function:
        marked: Any = function
        marked.tile_space = TILE_SPACE
        marked.tile_allowed = allowed
        return function

    return mark


@_tiled(fc1_width)
def fc1(
    x: Tensor,
    w1: Tensor,
    *,
    BLOCK_M: int = 64,
    BLOCK_N: int = 512,
    BLOCK_K: int = 512,
    ORDER: int = 0,
) -> Tensor:
    """First projection, [T, d_model] → [T, W].

    Orders: 0 rows, columns, reduction (an output tile is finished at once); 1 columns, reduction,
    rows and 2 reduction, columns, rows (a weight tile is widened once).

    Raises:
        InputError: a block below 1 or an unknown order.
    """
    _check(BLOCK_M, BLOCK_N, BLOCK_K, ORDER)
    wide = x.float()
    out = wide.new_empty(x.shape[0], w1.shape[0])
    rows = list(_blocks(x.shape[0], BLOCK_M))
    columns = list(_blocks(w1.shape[0], BLOCK_N))
    steps = list(_blocks(x.shape[1], BLOCK_K))
    if ORDER == 0:
        walks = [([m], n, steps) for m in rows for n in columns]
    elif ORDER == 1:
        walks = [(rows, n, steps) for n in columns]
    else:
        walks = [(rows, n, [k]) for k in steps for n in columns]
    for some_rows, n, some_steps in walks:
        _project(out[:, n], wide, w1[n], some_rows, some_steps)
    return out.to(x.dtype)


@_tiled(lambda expert: expert.d_ff)
def swiglu(
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    *,
    BLOCK_M: int = 64,
    BLOCK_N: int = 512,
    BLOCK_K: int = 512,
    ORDER: int = 0,
) -> Tensor:
    """Whole SwiGLU expert, [T, d_model] → [T, d_model], a slice of the hidden layer at a time.

    Orders: 0 rows, hidden columns, reduction; 1 hidden columns, rows, reduction; 2 hidden columns,
    reduction, rows (a weight tile is widened once).

    Raises:
        InputError: a block below 1 or an unknown order.
    """
    _check(BLOCK_M, BLOCK_N, BLOCK_K, ORDER)
    wide = x.float()
    out = wide.new_empty(x.shape[0], w2.shape[0])
    rows = list(_blocks(x.shape[0], BLOCK_M))
    hidden = list(_blocks(w2.shape[1], BLOCK_N))
    steps = list(_blocks(x.shape[1], BLOCK_K))
    if ORDER == 0:
        walks = [([m], f) for m in rows for f in hidden]
    elif ORDER == 1:
        walks = [([m], f) for f in hidden for m in rows]
    else:
        walks = [(rows, f) for f in hidden if rows]
    both = wide.new_empty(2, x.shape[0] if ORDER == 2 else BLOCK_M, BLOCK_N)
    d_ff = w2.shape[1]
    for some_rows, f in walks:
        first_row, last_row = some_rows[0].start, some_rows[-1].stop
        x_here = wide[first_row:last_row]
        gate_up = both[:, : last_row - first_row, : f.stop - f.start]
        here = list(_blocks(last_row - first_row, BLOCK_M))
        _project(gate_up[0], x_here, w1[f], here, steps)
        _project(gate_up[1], x_here, w1[f.start + d_ff : f.stop + d_ff], here, steps)
        down = w2[:, f].float()
        for m, inside in zip(some_rows, here, strict=True):
            _accumulate(out[m], _activated(gate_up[:, inside]), down, first=f.start == 0)
    return out.to(x.dtype)


def _project(out: Tensor, x: Tensor, weight: Tensor, rows: list[slice], steps: list[slice]) -> None:
    """Add x[m, k] weight[:, k]ᵀ to out[m] for every m and k, widening each weight tile once.

    The first step of the reduction overwrites what `out` held.
    """
    for k in steps:
        tile = weight[:, k].float()
        for m in rows:
            _accumulate(out[m], x[m, k], tile, first=k.start == 0)


def _activated(gate_up: Tensor) -> Tensor:
    """Return silu(gate) ⊙ up of [2, m, f]: [m, f]."""
    return F.silu(gate_up[0]) * gate_up[1]


def _accumulate(out: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """`out += a bᵀ` in place; the first time `out` holds nothing and is overwritten."""
    torch.addmm(out, a, b.t(), beta=0 if first else 1, out=out)


def _blocks(size: int, block: int) -> Iterator[slice]:
    return (slice(start, min(start + block, size)) for start in range(0, size, block))


def _check(block_m: int, block_n: int, block_k: int, order: int) -> None:
    if min(block_m, block_n, block_k) < 1 or order not in TILE_SPACE["ORDER"]:
        raise InputError(
            f"tile config BLOCK_M {block_m}, BLOCK_N {block_n}, BLOCK_K {block_k}, ORDER {order}",
            "the kernel cannot run",
            "use blocks of at least 1 and an order of 0, 1 or 2",
        )
