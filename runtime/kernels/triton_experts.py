"""Expert kernels in Triton under the kernel contract: single experts, their parts, whole layers.

Weights are dense or, packed by `prepare`, stored in 8 or 4 bits; what they are is read off the
packed tensors, so one function serves every kind. A layer takes rows sorted by expert and token
counts on the device. All tile parameters are keyword arguments (`tiles.Tile`); what is left out
follows a rule of thumb.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from costprof.core.errors import InputError
from costprof.runtime.kernels.launch import compute_capability, on_device_of, require_gpu
from costprof.runtime.kernels.packing import pack_weights
from costprof.runtime.kernels.tiles import TILE_SPACE, choose_tile, tile_allowed
from costprof.runtime.kernels.triton_linear import StoredWeight, grouped_linear
from costprof.runtime.kernels.triton_schedule import schedule_tiles

_SOURCES = tuple(
    f"costprof.runtime.kernels.{name}"
    for name in ("triton_linear", "triton_schedule", "tiles", "packing")
)
_Function = TypeVar("_Function", bound=Callable[..., Any])


def _kernel(function: _Function) -> _Function:
    """Attach what the contract lets a kernel say of itself."""
    function.prepare = pack_weights  # type: ignore[attr-defined]
    function.tile_space = TILE_SPACE  # type: ignore[attr-defined]
    function.tile_allowed = tile_allowed  # type: ignore[attr-defined]
    function.sources = _SOURCES  # type: ignore[attr-defined]
    function.framework = "triton"  # type: ignore[attr-defined]
    return function


@_kernel
def swiglu(x: Tensor, *weights: Tensor, **config: int) -> Tensor:
    """Whole SwiGLU expert, [T, d_model] → [T, d_model], in two launches."""
    return _expert("silu_mul", x, None, weights, config)


@_kernel
def relu(x: Tensor, *weights: Tensor, **config: int) -> Tensor:
    """Whole ReLU expert, [T, d_model] → [T, d_model], in two launches."""
    return _expert("relu", x, None, weights, config)


@_kernel
def linear(x: Tensor, *weights: Tensor, **config: int) -> Tensor:
    """One projection, [T, in] → [T, out]: fc1 without its activation, or fc2."""
    require_gpu(x)
    (weight,) = _stored(weights, 1)
    tile = choose_tile(config, x.shape[0], compute_capability(x.device), x.dtype)
    with on_device_of(x):
        return grouped_linear(x, weight, None, "none", tile)


@_kernel
def grouped_swiglu(x_sorted: Tensor, counts: Tensor, *weights: Tensor, **config: int) -> Tensor:
    """SwiGLU experts over their rows, [M, d_model] → [M, d_model], in three launches.

    Args:
        x_sorted: Rows sorted by expert.
        counts: [E] int32 on the device, together at most M; rows beyond them are not written.
        weights: w1 [E, 2·d_ff, d_model] and w2 [E, d_model, d_ff], or what `prepare` made of them.
        config: Tile parameters, shared by both projections.
    """
    return _expert("silu_mul", x_sorted, counts, weights, config)


@_kernel
def grouped_relu(x_sorted: Tensor, counts: Tensor, *weights: Tensor, **config: int) -> Tensor:
    """ReLU experts over their rows: as `grouped_swiglu`, with w1 [E, d_ff, d_model]."""
    return _expert("relu", x_sorted, counts, weights, config)


def _expert(
    activation: str,
    x: Tensor,
    counts: Tensor | None,
    weights: tuple[Tensor, ...],
    config: dict[str, int],
) -> Tensor:
    require_gpu(x)
    first, second = _stored(weights, 2)
    rows, experts = x.shape[0], first.values.shape[0]
    if counts is not None and counts.shape != (experts,):
        raise InputError(
            f"counts have shape {list(counts.shape)} for {experts} experts",
            "the rows cannot be dealt to the experts",
            f"give counts of shape [{experts}]",
        )
    tile = choose_tile(config, rows / experts, compute_capability(x.device), x.dtype)
    with on_device_of(x):
        schedule = None if counts is None else schedule_tiles(counts, rows, tile.BLOCK_M)
        hidden = grouped_linear(x, first, schedule, activation, tile)
        return grouped_linear(hidden, second, schedule, "none", tile)


def _stored(weights: tuple[Tensor, ...], projections: int) -> list[StoredWeight]:
    """Sort what the contract passes — dense weights, or values and scales in turn — by projection.

    A single expert's weights get the leading axis a layer's have.
    """
    if len(weights) == projections:
        found = [StoredWeight(weight) for weight in weights]
    elif len(weights) == 2 * projections:
        found = [StoredWeight(*weights[2 * i : 2 * i + 2]) for i in range(projections)]
    else:
        raise InputError(
            f"{len(weights)} weight tensors for {projections} projections",
            "the kernel was not run",
            "give dense weights, or what the kernel's prepare returned",
        )
    return [
        weight
        if weight.values.dim() == 3
        else StoredWeight(
            weight.values.unsqueeze(0), None if weight.scale is None else weight.scale.unsqueeze(0)
        )
        for weight in found
    ]
