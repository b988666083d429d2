"""Lay the rows of each expert side by side, and bring them back: on the device, in fixed order.

`permute` sorts the T·k assignments of a routed batch by expert, stably, without atomics, so that
the same batch always gives the same rows in the same places; `unpermute` adds each token's k
results up in rank order. A slot that names no expert (an index outside 0 … E - 1, as for padding)
is left out and adds nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from costprof.core.errors import InputError
from costprof.runtime.kernels.launch import on_device_of, require_gpu

_BLOCK = 1024


class Permuted(NamedTuple):
    """Rows sorted by expert.

    Attributes:
        rows: [T·k, d_model]; those from sum(counts) on are not written.
        counts: [E] int32, rows of each expert.
        position: [T·k] int32, where assignment `t·k + j` went; -1 where it was left out.
    """

    rows: Tensor
    counts: Tensor
    position: Tensor


def permute(x: Tensor, indices: Tensor, n_experts: int) -> Permuted:
    """Copy each token's row to a contiguous run of each expert it goes to.

    Args:
        x: [T, d_model].
        indices: [T, k] integer expert ids.
        n_experts: E.

    Raises:
        InputError: the shapes do not fit.
        ToolError: the tensors are not on a GPU.
    """
    tokens, width = x.shape
    if indices.dim() != 2 or indices.shape[0] != tokens:
        raise InputError(
            f"indices have shape {list(indices.shape)} for {tokens} tokens",
            "the rows cannot be dealt to the experts",
            f"give indices of shape [{tokens}, k]",
        )
    require_gpu(x)
    top_k = indices.shape[1]
    slots = tokens * top_k
    counts, position = number_slots(indices, n_experts)
    rows = torch.empty(slots, width, dtype=x.dtype, device=x.device)
    columns = min(_BLOCK, triton.next_power_of_2(width))
    if slots:
        with on_device_of(x):
            copy_rows[(slots, triton.cdiv(width, columns))](
                x.contiguous(), rows, position, top_k, width, BLOCK=columns
            )
    return Permuted(rows, counts, position)


def number_slots(indices: Tensor, n_experts: int) -> tuple[Tensor, Tensor]:
    """Return `counts` and `position` of `Permuted` for `indices` [T, k] of experts.

    Raises:
        ToolError: the tensor is not on a GPU.
    """
    require_gpu(indices)
    slots = indices.numel()
    ids = indices.reshape(-1).to(torch.int32)
    counts = torch.empty(n_experts, dtype=torch.int32, device=indices.device)
    position = torch.full((slots,), -1, dtype=torch.int32, device=indices.device)
    block = min(_BLOCK, triton.next_power_of_2(max(slots, 1)))
    with on_device_of(indices):
        rank_slots[(n_experts,)](ids, counts, position, slots, BLOCK=block)
    return counts, position


def unpermute(rows: Tensor, position: Tensor, weights: Tensor) -> Tensor:
    """Return [T, d_model]: each token's results, weighted and added up in float32.

    Args:
        rows: [T·k, d_model], in the order `permute` made.
        position: [T·k] int32, from `permute`.
        weights: [T, k], the gate's.

    Raises:
        ToolError: the tensors are not on a GPU.
    """
    require_gpu(rows)
    tokens, top_k = weights.shape
    width = rows.shape[1]
    out = torch.empty(tokens, width, dtype=rows.dtype, device=rows.device)
    columns = min(_BLOCK, triton.next_power_of_2(width))
    if tokens:
        with on_device_of(rows):
            combine_rows[(tokens, triton.cdiv(width, columns))](
                rows, out, position, weights.contiguous(), width, TOP_K=top_k, BLOCK=columns
            )
    return out


@triton.jit  # type: ignore[untyped-decorator]
def rank_slots(ids, counts, position, slots, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One program an expert: count its slots, then number them on from those of lower experts."""
    expert = tl.program_id(0)
    lower = tl.zeros([BLOCK], dtype=tl.int32)
    own = tl.zeros([BLOCK], dtype=tl.int32)
    for start in range(0, slots, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        of = tl.load(ids + slot, mask=slot < slots, other=-1)
        lower += ((of >= 0) & (of < expert)).to(tl.int32)
        own += (of == expert).to(tl.int32)
    tl.store(counts + expert, tl.sum(own, 0))
    next_row = tl.sum(lower, 0)
    for start in range(0, slots, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        of = tl.load(ids + slot, mask=slot < slots, other=-1)
        mine = (of == expert).to(tl.int32)
        tl.store(position + slot, next_row + tl.cumsum(mine, 0) - 1, mask=mine == 1)
        next_row += tl.sum(mine, 0)


@triton.jit  # type: ignore[untyped-decorator]
def copy_rows(x, rows, position, top_k, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One program a slot and run of columns."""
    slot = tl.program_id(0)
    at = tl.load(position + slot)
    if at >= 0:
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(x + (slot // top_k).to(tl.int64) * width + column, mask=column < width)
        tl.store(rows + at.to(tl.int64) * width + column, value, mask=column < width)


@triton.jit  # type: ignore[untyped-decorator]
def combine_rows(  # type: ignore[no-untyped-def]
    rows, out, position, weights, width, TOP_K: tl.constexpr, BLOCK: tl.constexpr
):
    """One program a token and run of columns."""
    token = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for rank in tl.static_range(TOP_K):
        at = tl.load(position + token * TOP_K + rank)
        if at >= 0:
            weight = tl.load(weights + token * TOP_K + rank).to(tl.float32)
            value = tl.load(rows + at.to(tl.int64) * width + column, mask=column < width)
            total += weight * value.to(tl.float32)
    target = out + token.to(tl.int64) * width + column
    tl.store(target, total.to(out.dtype.element_ty), mask=column < width)
