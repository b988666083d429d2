"""A whole layer of equal experts in plain torch: one contiguous run of rows per expert.

Shapes: `x_sorted` [sum(counts), d_model] with rows sorted by expert; `counts` [E] int32, rows per
expert, on the device of `x_sorted`; `w1` [E, W, d_model]; `w2` [E, d_model, d_ff]. An expert
without rows is skipped, so its weights are never read: that is what makes a small set of active
experts cheap. The loop runs on the host, which waits for the counts: no CUDA graph can hold it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from costprof.core.errors import InputError
from costprof.runtime.kernels.torch_ffn import relu, swiglu


def grouped_swiglu(x_sorted: Tensor, counts: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """SwiGLU experts over their rows, [sum(counts), d_model] → the same shape."""
    return _grouped(swiglu, x_sorted, counts, w1, w2)


def grouped_relu(x_sorted: Tensor, counts: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """ReLU experts over their rows, [sum(counts), d_model] → the same shape."""
    return _grouped(relu, x_sorted, counts, w1, w2)


def _grouped(
    expert: Callable[[Tensor, Tensor, Tensor], Tensor],
    x_sorted: Tensor,
    counts: Tensor,
    w1: Tensor,
    w2: Tensor,
) -> Tensor:
    rows_of_expert: list[int] = counts.tolist()
    if len(rows_of_expert) != w1.shape[0] or sum(rows_of_expert) != x_sorted.shape[0]:
        raise InputError(
            f"{len(rows_of_expert)} counts summing to {sum(rows_of_expert)} for "
            f"{w1.shape[0]} experts "
            f"and {x_sorted.shape[0]} rows",
            "the rows cannot be dealt to the experts",
            "give one count per expert, together as many as there are rows",
        )
    out = torch.empty(x_sorted.shape[0], w2.shape[1], dtype=x_sorted.dtype, device=x_sorted.device)
    start = 0
    for index, count in enumerate(rows_of_expert):
        if count:
            rows = slice(start, start + count)
            out[rows] = expert(x_sorted[rows], w1[index], w2[index])
            start += count
    return out
