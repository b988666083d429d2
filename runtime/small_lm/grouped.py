"""Products of sorted rows with their expert's matrix, in one node of the autograd graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def grouped_product(rows: Tensor, weights: Tensor, counts: list[int]) -> Tensor:
    """Multiply `rows` [M, d_in], sorted by expert, with `weights` [E, d_in, d_out].

    The first `counts[0]` rows meet expert 0 and so on; rows beyond the sum of `counts` come out as
    0. An expert without rows is not read. A loop over experts whose products go straight into one
    result: on a CPU E small products cost less than padding all experts to the fullest one.

    Returns:
        [M, d_out].
    """
    return _GroupedProduct.apply(rows, weights, counts)  # type: ignore[no-any-return, no-untyped-call]


class _GroupedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor, counts: list[int]) -> Tensor:
        ctx.save_for_backward(rows, weights)
        ctx.counts = counts
        out = rows.new_empty(rows.shape[0], weights.shape[2])
        for expert, begin, end in _runs(counts):
            torch.mm(rows[begin:end], weights[expert], out=out[begin:end])
        out[sum(counts) :] = 0.0
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, weights = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        of_rows, of_weights = torch.zeros_like(rows), torch.zeros_like(weights)
        for expert, begin, end in _runs(ctx.counts):
            torch.mm(gradient[begin:end], weights[expert].t(), out=of_rows[begin:end])
            torch.mm(rows[begin:end].t(), gradient[begin:end], out=of_weights[expert])
        return of_rows, of_weights, None


def _runs(counts: list[int]) -> list[tuple[int, int, int]]:
    """(expert, first row, row after the last) of every expert that has rows."""
    found, begin = [], 0
    for expert, count in enumerate(counts):
        if count:
            found.append((expert, begin, begin + count))
            begin += count
    return found
