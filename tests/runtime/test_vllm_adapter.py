"""The adapter to vLLM, on a stand-in with vLLM's calling convention: vLLM itself needs a GPU."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from costprof.core.errors import InputError
from costprof.profiler.kernels import resolve_kernel
from costprof.runtime.kernels.torch_ffn import swiglu
from costprof.runtime.kernels.torch_grouped import grouped_swiglu
from costprof.runtime.kernels.vllm_fused_moe import fused_swiglu, vllm_config

TILES = {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 128, "GROUP_M": 1}
CONFIG = {**TILES, "num_warps": 4, "num_stages": 3}


class StandIn(types.ModuleType):
    """`fused_experts` by its definition: per token, the weighted sum over its experts."""

    def __init__(self) -> None:
        super().__init__("vllm.model_executor.layers.fused_moe")
        self.config: dict[str, Any] | None = None
        self.used: list[dict[str, Any] | None] = []

    @contextlib.contextmanager
    def override_config(self, config: dict[str, Any]) -> Iterator[None]:
        self.config = config
        yield
        self.config = None

    def fused_experts(
        self,
        hidden_states: Tensor,
        w1: Tensor,
        w2: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        inplace: bool = False,
    ) -> Tensor:
        assert not inplace
        assert topk_weights.shape == topk_ids.shape == (hidden_states.shape[0], 1)
        assert topk_weights.dtype == torch.float32
        assert topk_ids.dtype == torch.int32
        self.used.append(self.config)
        out = torch.zeros_like(hidden_states)
        for token, (weight, expert) in enumerate(zip(topk_weights, topk_ids, strict=True)):
            row = hidden_states[token : token + 1]
            out[token] = weight * swiglu(row, w1[expert[0]], w2[expert[0]])[0]
        return out


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    module = StandIn()
    name = ""
    for part in module.__name__.split("."):
        name = f"{name}.{part}".lstrip(".")
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, name, module)
    return module


def layer() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    counts = torch.tensor([2, 0, 3, 1], dtype=torch.int32)
    return torch.randn(6, 16), counts, torch.randn(4, 16, 16), torch.randn(4, 16, 8)


def test_rows_sorted_by_expert_become_tokens_of_top_1(vllm: StandIn) -> None:
    operands = layer()
    with torch.inference_mode():
        torch.testing.assert_close(fused_swiglu(*operands), grouped_swiglu(*operands))
    assert vllm.used == [None]


def test_a_tile_config_reaches_vllm_under_its_own_names(vllm: StandIn) -> None:
    fused_swiglu(*layer(), **CONFIG)
    assert vllm.used == [
        {
            "BLOCK_SIZE_M": 16,
            "BLOCK_SIZE_N": 64,
            "BLOCK_SIZE_K": 128,
            "GROUP_SIZE_M": 1,
            "num_warps": 4,
            "num_stages": 3,
        }
    ]
    assert vllm.config is None


def test_half_a_launch_config_is_refused() -> None:
    with pytest.raises(InputError, match=r"vLLM lacks GROUP_M, num_stages, num_warps in .*"):
        vllm_config({name: value for name, value in TILES.items() if name != "GROUP_M"})
    with pytest.raises(InputError, match="vLLM does not know persistent in"):
        vllm_config({**CONFIG, "persistent": 1})


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_kernel_is_named_planned_and_refused_when_called() -> None:
    kernel = resolve_kernel("costprof.runtime.kernels.vllm_fused_moe:fused_swiglu")
    assert kernel.source_hash
    assert not kernel.framework.startswith("torch")
    with pytest.raises(InputError, match=r"vLLM cannot be imported .*; install vllm"):
        fused_swiglu(*layer())
