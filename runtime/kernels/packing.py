"""Weights as an expert class stores them: dense, or in 8 or 4 bits with float32 scales.

Scales are symmetric and rounding is to nearest (Dettmers & Zettlemoyer 2022, arXiv 2212.09720).

- int8 and fp8 (e4m3): values [..., out, in], one scale an output channel [..., out].
- int4: uint8 [..., out, in / 2], one scale for G = `INT4_GROUP_SIZE` input channels
  [..., out, in / G]. A value is `scale · (nibble - 8)` with nibbles 1 … 15. Within a group byte j
  holds channel j in its low and channel j + G/2 in its high nibble, so that widening it writes two
  contiguous runs instead of interleaving.

Bytes stored are what `core.work.weight_bytes` counts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from costprof.core.errors import InputError
from costprof.core.expert import INT4_GROUP_SIZE, ExpertClass, refuse_priced_only

Weights = tuple[Tensor, ...]
Pack = Callable[[Tensor], tuple[Tensor, Tensor]]

FP8_LARGEST = 448.0
"""Largest finite value of float8 e4m3."""

_INT8_LARGEST = 127.0
_INT4_ZERO, _INT4_LARGEST = 8, 7
_HALF = INT4_GROUP_SIZE // 2


def pack_weights(weights: Weights, expert: ExpertClass) -> Weights:
    """Return `weights`, each [..., out, in], as `expert` stores them: the contract's `prepare`.

    Dense weights come back as they are; of others, values and scales in turn.

    Raises:
        InputError: no kernel runs the format, or for int4 `in` is no multiple of the group size.
    """
    refuse_priced_only(expert)
    if expert.quantisation == "none":
        return weights
    pack = {"int8": pack_int8, "int4": pack_int4, "fp8": pack_fp8}[expert.quantisation]
    return tuple(part for weight in weights for part in _by_expert(pack, weight))


def _by_expert(pack: Pack, weight: Tensor) -> Weights:
    """Pack a layer an expert at a time: the float32 copies that packing makes are then of one."""
    if weight.dim() == 2 or not len(weight):
        return pack(weight)
    first = pack(weight[0])
    packed = tuple(part.new_empty(len(weight), *part.shape) for part in first)
    for index, dense in enumerate(weight):
        for whole, part in zip(packed, pack(dense) if index else first, strict=True):
            whole[index] = part
    return packed


def unpack_weight(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the dense [..., out, in] of `dtype` that packed `values` and `scale` stand for."""
    if values.dtype == torch.uint8:
        return _unpack_int4(values, scale, dtype)
    return (values.to(torch.float32) * scale.unsqueeze(-1)).to(dtype)


def pack_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise `weight` [..., out, in] to int8; an error is at most half its channel's scale."""
    scaled, scale = _scaled(weight, _INT8_LARGEST)
    return scaled.round_().to(torch.int8), scale


def pack_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise `weight` [..., out, in] to e4m3, whose relative error is at most 2⁻⁴."""
    scaled, scale = _scaled(weight, FP8_LARGEST)
    return scaled.to(torch.float8_e4m3fn), scale


def pack_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise `weight` [..., out, in] to 4 bits; an error is at most half its group's scale.

    Raises:
        InputError: `in` is not a multiple of the group size.
    """
    columns = weight.shape[-1]
    if columns % INT4_GROUP_SIZE:
        raise InputError(
            f"a weight of shape {list(weight.shape)} has no whole groups of {INT4_GROUP_SIZE} "
            "columns",
            "it cannot be packed to 4 bits",
            f"use input widths that are multiples of {INT4_GROUP_SIZE}",
        )
    groups = weight.detach().reshape(*weight.shape[:-1], -1, INT4_GROUP_SIZE)
    scaled, scale = _scaled(groups, _INT4_LARGEST)
    nibbles = scaled.round_().clamp_(-_INT4_LARGEST, _INT4_LARGEST).add_(_INT4_ZERO)
    nibbles = nibbles.to(torch.uint8)
    packed = nibbles[..., :_HALF] | (nibbles[..., _HALF:] << 4)
    return packed.flatten(-2), scale


def _scaled(weight: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """Divide by the scale that takes the largest magnitude of the last axis to `largest`."""
    dense = weight.detach().to(torch.float32)
    scale = dense.abs().amax(dim=-1) / largest
    # Zeros all along have scale 0; dividing by 1 instead keeps them at exactly 0.
    return dense / torch.where(scale > 0, scale, torch.ones_like(scale)).unsqueeze(-1), scale


def _unpack_int4(packed: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    pairs = packed.reshape(*packed.shape[:-1], -1, _HALF)
    dense = torch.empty(*scale.shape, 2, _HALF, dtype=dtype, device=packed.device)
    dense[..., 0, :] = pairs & 0xF
    dense[..., 1, :] = pairs >> 4
    dense.sub_(_INT4_ZERO).mul_(scale.to(dtype)[..., None, None])
    return dense.flatten(-3)
