"""The grouped product all expert kernels are made of, in Triton.

One kernel serves both projections: `out[rows of e] = act(x[rows of e] · w[e]ᵀ)`, where `act` is
nothing, ReLU, or SwiGLU's `silu(gate) ⊙ up` with the gate and up products of a tile side by side
in registers, so that the [rows, 2·d_ff] intermediate never exists.

Weights are dense, or stored in 8 or 4 bits and widened in registers: what crosses the memory bus
is what is stored. Accumulation is float32 throughout.

- int8: one scale an output channel, applied to the sum.
- int4: one scale for 64 input channels, applied as they are widened (`packing` has the format).
- fp8: e4m3 weights, one scale a channel; rows of `x` are scaled to e4m3 by their own largest
  magnitude and multiplied on the fp8 tensor cores (compute capability 8.9 and later), as in
  Micikevicius et al. 2022, arXiv 2209.05433, with per-row instead of per-tensor scales.

Tiles are walked in groups of GROUP_M rows of tiles, so that neighbours share weights in L2. A
persistent launch has a fixed number of programs that take tile after tile; a plain one has a
program a tile, and as many as the counts could make necessary: the surplus ends at once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from costprof.core.errors import InputError
from costprof.runtime.kernels.launch import compute_capability, streaming_multiprocessors
from costprof.runtime.kernels.packing import FP8_LARGEST
from costprof.runtime.kernels.tiles import Tile
from costprof.runtime.kernels.triton_schedule import Schedule

FP8_FROM = 89
"""Compute capability, times ten, of the first GPUs with fp8 tensor cores."""

_GROUP = tl.constexpr(64)  # core.expert.INT4_GROUP_SIZE
_HALF = tl.constexpr(32)
_FP8_LARGEST = tl.constexpr(FP8_LARGEST)


class StoredWeight(NamedTuple):
    """Weights of E experts as stored: [E, out, in].

    Attributes:
        values: Dense, int8 or float8 [E, out, in], or uint8 [E, out, in / 2].
        scale: float32, [E, out] for 8 bits, [E, out, in / 64] for 4, None for dense weights.
    """

    values: Tensor
    scale: Tensor | None = None

    @property
    def quantisation(self) -> str:
        """`none`, `int8`, `int4` or `fp8`, by the type of the values."""
        return _QUANTISATIONS.get(self.values.dtype, "none")


_QUANTISATIONS = {torch.uint8: "int4", torch.int8: "int8", torch.float8_e4m3fn: "fp8"}


def grouped_linear(
    x: Tensor, weight: StoredWeight, schedule: Schedule | None, activation: str, tile: Tile
) -> Tensor:
    """Return `act(x wᵀ)`, [M, out] (or [M, out / 2] for `silu_mul`), in the dtype of `x`.

    Rows that no tile covers are left unwritten.

    Args:
        x: [M, in], contiguous; rows sorted by expert.
        weight: Of E experts; gate rows first, then up, for `silu_mul`.
        schedule: Tiles of `tile.BLOCK_M` rows, or None for one expert that takes all rows.
        activation: `none`, `relu` or `silu_mul`.
        tile: Tile sizes and launch parameters.

    Raises:
        InputError: `x` and the weights do not fit each other, or the tile does not fit 4 bits.
    """
    rows, n_in = x.shape
    _check(x, weight)
    n_out = weight.values.shape[1] // (2 if activation == "silu_mul" else 1)
    out = torch.empty(rows, n_out, dtype=x.dtype, device=x.device)
    if rows == 0:
        return out
    quantisation = weight.quantisation
    if quantisation == "int4" and tile.BLOCK_K % _GROUP.value:
        raise InputError(
            f"BLOCK_K {tile.BLOCK_K} splits the groups of 4-bit weights",
            "the product cannot be computed",
            f"use a multiple of {_GROUP.value}",
        )
    if quantisation == "fp8" and compute_capability(x.device) < FP8_FROM:
        raise InputError(
            f"this GPU's compute capability is {compute_capability(x.device) / 10}",
            "it cannot multiply fp8",
            "use int8 weights, or a GPU of compute capability 8.9 and later",
        )
    x_scale = row_scales(x) if quantisation == "fp8" else x
    row_tiles = triton.cdiv(rows, tile.BLOCK_M) if schedule is None else schedule.max_tiles
    programs = row_tiles * triton.cdiv(n_out, tile.BLOCK_N)
    if tile.persistent:
        programs = min(programs, tile.persistent * streaming_multiprocessors(x.device))
    grouped_linear_kernel[(programs,)](
        x,
        x_scale,
        weight.values,
        weight.values if weight.scale is None else weight.scale,
        out,
        out if schedule is None else schedule.tiles,
        out if schedule is None else schedule.n_tiles,
        rows,
        n_out,
        n_in,
        **kernel_constants(tile, activation, quantisation, x.dtype, n_in, schedule is None),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        enable_fp_fusion=True,
    )
    return out


def _check(x: Tensor, weight: StoredWeight) -> None:
    # The kernel takes pointers: nothing else would notice.
    depth = weight.values.shape[2] * (2 if weight.quantisation == "int4" else 1)
    if x.shape[1] != depth:
        raise InputError(
            f"rows of {x.shape[1]} values meet weights of {depth} input channels",
            "the product cannot be computed",
            "give rows and weights of one expert class",
        )
    for name, tensor in (("x", x), ("the weights", weight.values), ("the scales", weight.scale)):
        if tensor is not None and not tensor.is_contiguous():
            raise InputError(
                f"the memory of {name} is not contiguous",
                "the kernel would read other values",
                "pass it through .contiguous() once, outside the hot path",
            )


def kernel_constants(
    tile: Tile, activation: str, quantisation: str, dtype: torch.dtype, n_in: int, single: bool
) -> dict[str, object]:
    """Return the compile-time arguments of `grouped_linear_kernel`."""
    return {
        "ACT": activation,
        "QUANT": quantisation,
        # TF32 would round float32 experts to 10 bits.
        "PRECISION": "ieee" if dtype == torch.float32 else "tf32",
        "SINGLE": single,
        "EVEN_K": n_in % tile.BLOCK_K == 0,
        "PERSISTENT": bool(tile.persistent),
        "BLOCK_M": tile.BLOCK_M,
        "BLOCK_N": tile.BLOCK_N,
        "BLOCK_K": tile.BLOCK_K,
        "GROUP_M": tile.GROUP_M,
    }


def row_scales(x: Tensor) -> Tensor:
    """Return [M] float32: the largest magnitude of each row of `x` [M, in] over 448."""
    rows, width = x.shape
    scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    row_scales_kernel[(rows,)](x, scale, width, BLOCK=min(4096, triton.next_power_of_2(width)))
    return scale


@triton.jit  # type: ignore[untyped-decorator]
def row_scales_kernel(x, scale, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Store the scale of one row a program; a row of zeros gets 1."""
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * width + column, mask=column < width, other=0.0)
        largest = tl.maximum(largest, tl.abs(value.to(tl.float32)))
    top = tl.max(largest, 0)
    tl.store(scale + row, tl.where(top > 0, top / _FP8_LARGEST, 1.0))


@triton.jit  # type: ignore[untyped-decorator]
def grouped_linear_kernel(  # type: ignore[no-untyped-def]
    x,
    x_scale,
    w,
    w_scale,
    out,
    tiles,
    n_tiles,
    rows,
    n_out,
    n_in,
    ACT: tl.constexpr,
    QUANT: tl.constexpr,
    PRECISION: tl.constexpr,
    SINGLE: tl.constexpr,
    EVEN_K: tl.constexpr,
    PERSISTENT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """Give each program its output tiles: one, or with PERSISTENT every so many-th."""
    columns = tl.cdiv(n_out, BLOCK_N)
    row_tiles = tl.cdiv(rows, BLOCK_M) if SINGLE else tl.load(n_tiles)
    total = row_tiles * columns
    first = tl.program_id(0)
    # fmt: off
    if PERSISTENT:
        for index in tl.range(first, total, tl.num_programs(0)):
            output_tile(
                index, row_tiles, columns, x, x_scale, w, w_scale, out, tiles, rows, n_out, n_in,
                ACT, QUANT, PRECISION, SINGLE, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M,
            )
    elif first < total:
        output_tile(
            first, row_tiles, columns, x, x_scale, w, w_scale, out, tiles, rows, n_out, n_in,
            ACT, QUANT, PRECISION, SINGLE, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M,
        )
    # fmt: on


@triton.jit  # type: ignore[untyped-decorator]
def output_tile(  # type: ignore[no-untyped-def]
    index,
    row_tiles,
    columns,
    x,
    x_scale,
    w,
    w_scale,
    out,
    tiles,
    rows,
    n_out,
    n_in,
    ACT: tl.constexpr,
    QUANT: tl.constexpr,
    PRECISION: tl.constexpr,
    SINGLE: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """Compute and store the tile `index` of the output."""
    GATED: tl.constexpr = ACT == "silu_mul"
    group = index // (GROUP_M * columns)
    within = index % (GROUP_M * columns)
    height = tl.minimum(row_tiles - group * GROUP_M, GROUP_M)
    row_tile = group * GROUP_M + within % height
    n = (within // height) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Columns beyond the last repeat others and are not stored.
    channel = (n % n_out).to(tl.int64)
    if SINGLE:
        m = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
        end = rows
    else:
        expert = tl.load(tiles + row_tile * 3)
        m = tl.load(tiles + row_tile * 3 + 1) + tl.arange(0, BLOCK_M)
        end = tl.load(tiles + row_tile * 3 + 2)
        channel += expert.to(tl.int64) * n_out * (2 if GATED else 1)
    real = m < end
    m = m.to(tl.int64)
    x_row = x + m[:, None] * n_in
    acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    acc_up = acc
    if QUANT == "fp8":
        row_scale = tl.load(x_scale + m, mask=real, other=1.0)[:, None]
    if QUANT == "int4":
        k = tl.arange(0, _HALF)
        for start in range(0, n_in, BLOCK_K):
            for offset in tl.static_range(0, BLOCK_K, _GROUP):
                at = start + offset
                inside = real[:, None]
                if not EVEN_K:  # n_in is a multiple of the group: all of it is inside or none
                    inside = inside & (at + k < n_in)[None, :]
                low = tl.load(x_row + (at + k)[None, :], mask=inside, other=0.0)
                high = tl.load(x_row + (at + _HALF + k)[None, :], mask=inside, other=0.0)
                first, second = widen_int4(w, w_scale, channel, at, k, n_in, EVEN_K, x)
                acc = tl.dot(low, tl.trans(first), acc, input_precision=PRECISION)
                acc = tl.dot(high, tl.trans(second), acc, input_precision=PRECISION)
                if GATED:
                    first, second = widen_int4(w, w_scale, channel + n_out, at, k, n_in, EVEN_K, x)
                    acc_up = tl.dot(low, tl.trans(first), acc_up, input_precision=PRECISION)
                    acc_up = tl.dot(high, tl.trans(second), acc_up, input_precision=PRECISION)
    else:
        k = tl.arange(0, BLOCK_K)
        w_row = w + channel[:, None] * n_in
        up_row = w_row + n_out.to(tl.int64) * n_in
        for start in range(0, n_in, BLOCK_K):
            at = start + k
            if EVEN_K:
                values = tl.load(x_row + at[None, :], mask=real[:, None], other=0.0)
                weight = tl.load(w_row + at[None, :])
            else:
                inside = at[None, :] < n_in
                values = tl.load(x_row + at[None, :], mask=real[:, None] & inside, other=0.0)
                weight = tl.load(w_row + at[None, :], mask=inside, other=0.0)
            if QUANT == "fp8":
                values = (values.to(tl.float32) / row_scale).to(tl.float8e4nv)
            acc = tl.dot(values, tl.trans(weight.to(values.dtype)), acc, input_precision=PRECISION)
            if GATED:
                if EVEN_K:
                    weight = tl.load(up_row + at[None, :])
                else:
                    weight = tl.load(up_row + at[None, :], mask=inside, other=0.0)
                acc_up = tl.dot(
                    values, tl.trans(weight.to(values.dtype)), acc_up, input_precision=PRECISION
                )
    if QUANT == "int8" or QUANT == "fp8":
        acc *= tl.load(w_scale + channel)[None, :]
        if GATED:
            acc_up *= tl.load(w_scale + channel + n_out)[None, :]
    if QUANT == "fp8":
        acc *= row_scale
        acc_up *= row_scale
    if GATED:
        acc = acc / (1.0 + tl.exp(-acc)) * acc_up
    elif ACT == "relu":
        acc = tl.maximum(acc, 0.0)
    stored = real[:, None] & (n < n_out)[None, :]
    tl.store(out + m[:, None] * n_out + n[None, :], acc.to(out.dtype.element_ty), mask=stored)


@triton.jit  # type: ignore[untyped-decorator]
def widen_int4(  # type: ignore[no-untyped-def]
    w, w_scale, channel, at, k, n_in, EVEN_K: tl.constexpr, like
):
    """Weights of one group of 64 input channels in the type of `like`: the first and last 32.

    Byte j of a group holds channel j in its low and channel j + 32 in its high half.
    """
    byte_at = w + (channel * (n_in // 2))[:, None] + (at // 2 + k)[None, :]
    scale_at = w_scale + channel * (n_in // _GROUP) + at // _GROUP
    if EVEN_K:
        byte = tl.load(byte_at)
        scale = tl.load(scale_at)
    else:
        byte = tl.load(byte_at, mask=(at + k < n_in)[None, :], other=0)
        scale = tl.load(scale_at, mask=at + 0 * channel < n_in, other=0.0)
    first = ((byte & 0xF).to(tl.int8) - 8).to(tl.float32) * scale[:, None]
    second = ((byte >> 4).to(tl.int8) - 8).to(tl.float32) * scale[:, None]
    return first.to(like.dtype.element_ty), second.to(like.dtype.element_ty)
