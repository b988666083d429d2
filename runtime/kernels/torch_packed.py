"""Experts whose weights are stored in 8 or 4 bits, in plain torch: widened on every call.

Torch has no public kernel that multiplies these formats (`packing`), so each call writes the dense
weight out and multiplies with that: it saves memory, and on most machines costs time. That is the
cost the profiler is there to find; kernels that widen in registers are in `triton_experts`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor

from costprof.core.expert import ExpertClass
from costprof.runtime.kernels.packing import (
    Weights,
    pack_fp8,
    pack_int4,
    pack_int8,
    pack_weights,
    unpack_weight,
)
from costprof.runtime.kernels.torch_ffn import silu_mul
from costprof.runtime.kernels.torch_grouped import grouped

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _preparing(
    prepare: Callable[[Weights, ExpertClass], Weights],
) -> Callable[[_Function], _Function]:
    """Attach `prepare`, which the kernel contract calls once per copy of the weights."""

    def attach(function: _Function) -> _Function:
        function.prepare = prepare  # type: ignore[attr-defined]
        return function

    return attach


def pack_to_int4(w1: Tensor, w2: Tensor) -> Weights:
    """Pack both weights of an expert to 4 bits: (values1, scale1, values2, scale2)."""
    return (*pack_int4(w1), *pack_int4(w2))


def pack_to_int8(w1: Tensor, w2: Tensor) -> Weights:
    """Pack both weights of an expert to int8: (values1, scale1, values2, scale2)."""
    return (*pack_int8(w1), *pack_int8(w2))


def pack_to_fp8(w1: Tensor, w2: Tensor) -> Weights:
    """Pack both weights of an expert to e4m3: (values1, scale1, values2, scale2)."""
    return (*pack_fp8(w1), *pack_fp8(w2))


def _pack_for_unpack(weights: Weights, expert: ExpertClass) -> Weights:
    # An empty tensor says of what type the dense weights were.
    return (*pack_weights(weights, expert), weights[0].new_empty(0))


@_preparing(_pack_for_unpack)
def unpack(
    values1: Tensor, scale1: Tensor, values2: Tensor, scale2: Tensor, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Dense (w1, w2), of the type of `like`, from what packing them returned."""
    return (
        unpack_weight(values1, scale1, like.dtype),
        unpack_weight(values2, scale2, like.dtype),
    )


@_preparing(pack_weights)
def swiglu(x: Tensor, values1: Tensor, scale1: Tensor, values2: Tensor, scale2: Tensor) -> Tensor:
    """Whole SwiGLU expert on packed weights, [T, d_model] → [T, d_model]."""
    return linear(silu_mul(linear(x, values1, scale1)), values2, scale2)


@_preparing(pack_weights)
def relu(x: Tensor, values1: Tensor, scale1: Tensor, values2: Tensor, scale2: Tensor) -> Tensor:
    """Whole ReLU expert on packed weights, [T, d_model] → [T, d_model]."""
    return linear(F.relu(linear(x, values1, scale1)), values2, scale2)


@_preparing(pack_weights)
def linear(x: Tensor, values: Tensor, scale: Tensor) -> Tensor:
    """One projection on packed weights, [T, in] → [T, out]."""
    return F.linear(x, unpack_weight(values, scale, x.dtype))


@_preparing(pack_weights)
def grouped_swiglu(x_sorted: Tensor, counts: Tensor, *packed: Tensor) -> Tensor:
    """SwiGLU experts on packed weights over their rows, [sum(counts), d_model] → the same shape."""
    return grouped(swiglu, x_sorted, counts, *packed)


@_preparing(pack_weights)
def grouped_relu(x_sorted: Tensor, counts: Tensor, *packed: Tensor) -> Tensor:
    """ReLU experts on packed weights over their rows, [sum(counts), d_model] → the same shape."""
    return grouped(relu, x_sorted, counts, *packed)
