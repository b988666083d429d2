"""Deliberately naive experts in float64: one token, one output at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def naive_expert(x: Tensor, w1: Tensor, w2: Tensor, activation: str) -> Tensor:
    """[T, d_model] → [T, d_model] in float64; `w1` has gate rows first for `swiglu`."""
    x, w1, w2 = x.double().cpu(), w1.double().cpu(), w2.double().cpu()
    d_ff = w2.shape[1]
    out = torch.zeros(x.shape[0], w2.shape[0], dtype=torch.float64)
    for t in range(x.shape[0]):
        hidden = [(w1[row] * x[t]).sum().item() for row in range(w1.shape[0])]
        if activation == "swiglu":
            hidden = [
                hidden[i] / (1 + math.exp(-hidden[i])) * hidden[i + d_ff] for i in range(d_ff)
            ]
        else:
            hidden = [max(value, 0.0) for value in hidden]
        out[t] = w2 @ torch.tensor(hidden, dtype=torch.float64)
    return out


def naive_layer(
    x_sorted: Tensor, counts: list[int], w1: Tensor, w2: Tensor, activation: str
) -> Tensor:
    """[M, d_model] → [M, d_model] in float64; rows beyond the counts are NaN."""
    out = torch.full((x_sorted.shape[0], w2.shape[1]), float("nan"), dtype=torch.float64)
    start = 0
    for expert, count in enumerate(counts):
        rows = slice(start, start + count)
        out[rows] = naive_expert(x_sorted[rows], w1[expert], w2[expert], activation)
        start += count
    return out


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest magnitude expected."""
    difference = (actual.double().cpu() - expected).abs().max()
    return float(difference / expected.abs().max().clamp(min=1e-30))
