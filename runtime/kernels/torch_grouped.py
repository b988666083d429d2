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
    return grouped(swiglu, x_sorted, counts, w1, w2)


def grouped_relu(x_sorted: Tensor, counts: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """ReLU experts over their rows, [sum(counts), d_model] → the same shape."""
    return grouped(relu, x_sorted, counts, w1, w2)


def grouped(
    expert: Callable[..., Tensor], x_sorted: Tensor, counts: Tensor, *weights: Tensor
) -> Tensor:
    """Run `expert(rows, *its weights)` over each expert's rows, [sum(counts), d_model] → the same.

    Raises:
        InputError: the counts do not fit the rows and the experts of `weights`, each [E, ...].
    """
    rows_of_expert: list[int] = counts.tolist()
    experts = weights[0].shape[0]
    if len(rows_of_expert) != experts or sum(rows_of_expert) != x_sorted.shape[0]:
        raise InputError(
            f"{len(rows_of_expert)} counts summing to {sum(rows_of_expert)} for {experts} experts "
            f"and {x_sorted.shape[0]} rows",
            "the rows cannot be dealt to the experts",
            "give one count per expert, together as many as there are rows",
        )
    out = torch.empty_like(x_sorted)
    start = 0
    for index, count in enumerate(rows_of_expert):
        if count:
            rows = slice(start, start + count)
            out[rows] = expert(x_sorted[rows], *(weight[index] for weight in weights))
            start += count
    return out
