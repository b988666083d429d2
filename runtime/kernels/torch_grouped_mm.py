"""A whole layer of equal experts by torch's grouped matrix product: the library baseline.

Two launches of `torch.nn.functional.grouped_mm` with the activation between them. The ends of the
experts' rows stay on the device, so that a CUDA graph can hold the call. On a GPU torch has the
fast kernel for bfloat16 and compute capability 9.0 and above; elsewhere it loops over the experts.
Rows of weights must be multiples of 16 bytes, as those of all named models are.

Shapes: `x_sorted` [sum(counts), d_model] with rows sorted by expert; `counts` [E] int32, rows per
expert, on the device of `x_sorted`; `w1` [E, W, d_model]; `w2` [E, d_model, d_ff].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from costprof.core.errors import InputError
from costprof.runtime.kernels.torch_ffn import relu_activation, silu_mul


def grouped_mm_swiglu(x_sorted: Tensor, counts: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """SwiGLU experts over their rows, [sum(counts), d_model] → the same shape.

    Raises:
        InputError: this torch has no grouped matrix product.
    """
    ends = _ends(counts)
    return _grouped_mm(silu_mul(_grouped_mm(x_sorted, w1, ends)), w2, ends)


def grouped_mm_relu(x_sorted: Tensor, counts: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """ReLU experts over their rows, [sum(counts), d_model] → the same shape.

    Raises:
        InputError: this torch has no grouped matrix product.
    """
    ends = _ends(counts)
    return _grouped_mm(relu_activation(_grouped_mm(x_sorted, w1, ends)), w2, ends)


def _ends(counts: Tensor) -> Tensor:
    """Where each expert's rows end, [E] int32."""
    return counts.cumsum(0, dtype=torch.int32)


def _grouped_mm(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """`rows` [M, K] by `weights` [E, N, K] transposed, expert by expert → [M, N]."""
    grouped_mm = getattr(functional, "grouped_mm", None)
    if grouped_mm is None:
        raise InputError(
            f"torch {torch.__version__} has no torch.nn.functional.grouped_mm",
            "the layer cannot be run by it",
            "install torch 2.11 or newer, or use torch_grouped",
        )
    product: Tensor = grouped_mm(rows, weights.transpose(-2, -1), offs=ends)
    return product
