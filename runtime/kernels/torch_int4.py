"""4-bit weight-only experts in plain torch: two values a byte, unpacked on every call.

Format of a weight [out, in]: `packed` uint8 [out, in / 2] and `scale` float32 [out, in / G] with
G = `INT4_GROUP_SIZE`. A value is `scale · (nibble - 8)` with nibbles 1 … 15, symmetric about
zero, and `scale` is the group's largest magnitude over 7 (round-to-nearest, as in Dettmers &
Zettlemoyer 2022, arXiv 2212.09720). Within a group of G columns byte j holds column j in its low
and column j + G/2 in its high nibble, so that unpacking writes two contiguous runs instead of
interleaving. Bytes stored: in·out / 2 + in·out / G · 4, what `core.work.weight_bytes` counts.

Torch has no public kernel that multiplies this format, so each call writes the dense weight out
and multiplies with that: it saves memory, and on most machines costs time. That is the cost the
profiler is there to find; a fused kernel is a `Kernel` of another name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from costprof.core.errors import InputError
from costprof.core.expert import INT4_GROUP_SIZE, ExpertClass
from costprof.runtime.kernels.torch_ffn import silu_mul

Weights = tuple[Tensor, ...]
_Function = TypeVar("_Function", bound=Callable[..., Any])

_ZERO = 8
_LARGEST = 7
_HALF = INT4_GROUP_SIZE // 2


def pack_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise a dense `weight` [out, in] to (packed uint8 [out, in/2], scale float32 [out, in/G]).

    The error of each value is at most half its group's scale.

    Raises:
        InputError: `in` is not a multiple of the group size.
    """
    rows, columns = weight.shape
    if columns % INT4_GROUP_SIZE:
        raise InputError(
            f"a weight of shape [{rows}, {columns}] has no whole groups of {INT4_GROUP_SIZE} "
            "columns",
            "it cannot be packed to 4 bits",
            f"use input widths that are multiples of {INT4_GROUP_SIZE}",
        )
    groups = weight.detach().float().view(rows, -1, INT4_GROUP_SIZE)
    scale = groups.abs().amax(dim=-1) / _LARGEST
    # A group of zeros has scale 0; dividing by 1 instead keeps its values at exactly 0.
    divisor = torch.where(scale > 0, scale, torch.ones_like(scale))
    nibbles = (groups / divisor.unsqueeze(-1)).round_().clamp_(-_LARGEST, _LARGEST).add_(_ZERO)
    nibbles = nibbles.to(torch.uint8)
    packed = nibbles[..., :_HALF] | (nibbles[..., _HALF:] << 4)
    return packed.view(rows, columns // 2), scale


def unpack_weight(packed: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Undo `pack_weight` up to rounding: dense [out, in] of `dtype`."""
    rows, groups = scale.shape
    dense = torch.empty(rows, groups, 2, _HALF, dtype=dtype, device=packed.device)
    pairs = packed.view(rows, groups, _HALF)
    dense[:, :, 0] = pairs & 0xF
    dense[:, :, 1] = pairs >> 4
    dense.sub_(_ZERO).mul_(scale.to(dtype).view(rows, groups, 1, 1))
    return dense.view(rows, groups * INT4_GROUP_SIZE)


def _preparing(
    prepare: Callable[[Weights, ExpertClass], Weights],
) -> Callable[[_Function], _Function]:
    """Attach `prepare`, which the kernel contract calls once per copy of the weights."""

    def attach(function: _Function) -> _Function:
        function.prepare = prepare  # type: ignore[attr-defined]
        return function

    return attach


def _pack_each(weights: Weights, expert: ExpertClass) -> Weights:
    return tuple(part for weight in weights for part in pack_weight(weight))


def _pack_expert(weights: Weights, expert: ExpertClass) -> Weights:
    return pack(*weights)


def pack(w1: Tensor, w2: Tensor) -> Weights:
    """Pack both weights of an expert: (packed1, scale1, packed2, scale2, like).

    `like` is an empty tensor whose dtype is the dense weights': what `unpack` gives back.
    """
    return (*pack_weight(w1), *pack_weight(w2), w1.new_empty(0))


@_preparing(_pack_expert)
def unpack(
    packed1: Tensor, scale1: Tensor, packed2: Tensor, scale2: Tensor, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Dense (w1, w2) from what `pack` returned."""
    return (
        unpack_weight(packed1, scale1, like.dtype),
        unpack_weight(packed2, scale2, like.dtype),
    )


@_preparing(_pack_each)
def swiglu_int4(
    x: Tensor, packed1: Tensor, scale1: Tensor, packed2: Tensor, scale2: Tensor
) -> Tensor:
    """Whole SwiGLU expert on 4-bit weights, [T, d_model] → [T, d_model]."""
    return fc2_int4(silu_mul(fc1_int4(x, packed1, scale1)), packed2, scale2)


@_preparing(_pack_each)
def relu_int4(
    x: Tensor, packed1: Tensor, scale1: Tensor, packed2: Tensor, scale2: Tensor
) -> Tensor:
    """Whole ReLU expert on 4-bit weights, [T, d_model] → [T, d_model]."""
    return fc2_int4(F.relu(fc1_int4(x, packed1, scale1)), packed2, scale2)


@_preparing(_pack_each)
def fc1_int4(x: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    """First projection on 4-bit weights, [T, d_model] → [T, W]."""
    return F.linear(x, unpack_weight(packed, scale, x.dtype))


@_preparing(_pack_each)
def fc2_int4(h: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    """Second projection on 4-bit weights, [T, d_ff] → [T, d_model]."""
    return F.linear(h, unpack_weight(packed, scale, h.dtype))
