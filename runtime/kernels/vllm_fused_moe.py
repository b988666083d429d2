"""A whole layer by vLLM's `fused_experts`, where vLLM is installed: what a serving engine runs.

vLLM takes tokens with their top-k expert ids, this project rows sorted by expert. Every row is
given to it as a token of top-k 1 with weight 1, so the result is that of the layer contract. Its
own sorting and its sum over top-k stay in the call, as in serving; what is added to it are the
expert ids, two small launches. vLLM keeps gate rows before up rows as we do.

Without a tile config vLLM looks up its own for the device. One that is given is the whole launch
config and goes in by its `override_config`, under the names vLLM uses.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping
from types import ModuleType

import torch
from torch import Tensor

from costprof.core.errors import InputError
from costprof.core.fused_moe import FUSED_MOE_NAMES

_MODULE = "vllm.model_executor.layers.fused_moe"
_NAMES = {**FUSED_MOE_NAMES, "SPLIT_K": "SPLIT_K"}
_OPTIONAL = {"SPLIT_K"}


def fused_swiglu(x_sorted: Tensor, counts: Tensor, w1: Tensor, w2: Tensor, **config: int) -> Tensor:
    """SwiGLU experts over their rows, [sum(counts), d_model] → the same shape.

    Args:
        x_sorted: [sum(counts), d_model], rows sorted by expert, contiguous, on a GPU.
        counts: [E] int32, rows per expert, on the same GPU.
        w1: [E, 2·d_ff, d_model], gate rows first, then up.
        w2: [E, d_model, d_ff].
        config: BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M, num_warps, num_stages and, if need be, SPLIT_K;
            or nothing.

    Raises:
        InputError: vLLM is not installed or has no such function any more, or `config` is not a
            whole launch config.
    """
    override = vllm_config(config) if config else None
    vllm = _fused_moe()
    expert_ids = _expert_of_row(counts, x_sorted.shape[0])
    weights = torch.ones(expert_ids.shape, dtype=torch.float32, device=x_sorted.device)
    with vllm.override_config(override) if override else contextlib.nullcontext():
        out: Tensor = vllm.fused_experts(x_sorted, w1, w2, weights, expert_ids)
    return out


fused_swiglu.framework = "vllm"  # type: ignore[attr-defined]
fused_swiglu.sources = ("costprof.core.fused_moe",)  # type: ignore[attr-defined]


def vllm_config(config: Mapping[str, int]) -> dict[str, int]:
    """Return a tile config under vLLM's names.

    >>> tiles = {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 128, "GROUP_M": 1}
    >>> vllm_config({**tiles, "num_warps": 4, "num_stages": 3})["BLOCK_SIZE_M"]
    16

    Raises:
        InputError: a parameter is unknown to vLLM, or one that it needs is missing.
    """
    unknown = sorted(config.keys() - _NAMES.keys())
    missing = sorted(_NAMES.keys() - _OPTIONAL - config.keys())
    if unknown or missing:
        what = f"does not know {', '.join(unknown)}" if unknown else f"lacks {', '.join(missing)}"
        raise InputError(
            f"vLLM {what} in the tile config",
            "its kernel cannot be launched with it",
            f"give {', '.join(name for name in _NAMES if name not in _OPTIONAL)}, or no config",
        )
    return {_NAMES[name]: value for name, value in config.items()}


def _expert_of_row(counts: Tensor, rows: int) -> Tensor:
    """The expert of each row, [rows, 1] int32, made without waiting for the device."""
    experts = torch.arange(counts.shape[0], dtype=torch.int32, device=counts.device)
    return experts.repeat_interleave(counts, output_size=rows).unsqueeze(1)


def _fused_moe() -> ModuleType:
    try:
        module = importlib.import_module(_MODULE)
    except ImportError as error:
        raise InputError(
            f"vLLM cannot be imported ({error})",
            "its fused_experts cannot be measured",
            "install vllm, or name another kernel",
        ) from error
    if not callable(getattr(module, "fused_experts", None)):
        raise InputError(
            f"this vLLM has no fused_experts in {_MODULE}",
            "its kernel cannot be measured",
            "install a version that has it",
        )
    return module
