"""The blocked kernels against float64, under every kind of tile config."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from costprof.core.errors import InputError
from costprof.core.expert import ExpertClass
from costprof.profiler.tiles import kernel_tiles
from costprof.runtime.kernels import torch_blocked

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
D_MODEL, D_FF = 100, 72  # neither is a multiple of any block


def inputs(tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, D_MODEL, generator=generator)
    w1 = torch.randn(2 * D_FF, D_MODEL, generator=generator) / D_MODEL**0.5
    w2 = torch.randn(D_MODEL, D_FF, generator=generator) / D_FF**0.5
    return x.to(dtype), w1.to(dtype), w2.to(dtype)


def assert_close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    error = (found.double() - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCE[dtype]


def some_configs() -> list[dict[str, int]]:
    space = torch_blocked.TILE_SPACE
    draw = random.Random(0)
    drawn = [{name: draw.choice(values) for name, values in space.items()} for _ in range(24)]
    ends = [{name: values[end] for name, values in space.items()} for end in (0, -1)]
    odd = [{"BLOCK_M": 7, "BLOCK_N": 25, "BLOCK_K": 33, "ORDER": order} for order in (0, 1, 2)]
    return [{}, *ends, *odd, *drawn]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("tokens", [1, 19])
def test_every_config_computes_the_same(tokens: int, dtype: torch.dtype) -> None:
    x, w1, w2 = inputs(tokens, dtype)
    wide = x.double() @ w1.double().t()
    whole = (F.silu(wide[:, :D_FF]) * wide[:, D_FF:]) @ w2.double().t()
    with torch.inference_mode():
        for config in some_configs():
            assert_close(torch_blocked.fc1(x, w1, **config), wide, dtype)
            assert_close(torch_blocked.swiglu(x, w1, w2, **config), whole, dtype)


def test_what_was_in_memory_does_not_leak_into_a_result() -> None:
    x, w1, w2 = inputs(5, torch.float32)
    clean = torch_blocked.swiglu(x, w1, w2, BLOCK_K=32)
    garbage = [torch.full((5, size), float("nan")) for size in (D_MODEL, D_FF, 512) for _ in "123"]
    del garbage
    assert torch.equal(torch_blocked.swiglu(x, w1, w2, BLOCK_K=32), clean)


def test_no_tokens_give_no_rows() -> None:
    x, w1, w2 = inputs(1, torch.float32)
    assert torch_blocked.swiglu(x[:0], w1, w2).shape == (0, D_MODEL)


def test_tiles_larger_than_the_matrix_are_not_tried() -> None:
    expert = ExpertClass(d_model=256, d_ff=64, dtype="float32")
    whole = kernel_tiles("costprof.runtime.kernels.torch_blocked:swiglu", expert)
    first = kernel_tiles("costprof.runtime.kernels.torch_blocked:fc1", expert)
    assert whole is not None
    assert first is not None
    assert max(config["BLOCK_N"] for config in whole.configs) == 64
    assert max(config["BLOCK_N"] for config in first.configs) == 128
    assert max(config["BLOCK_K"] for config in first.configs) == 256
    large: Any = kernel_tiles(
        "costprof.runtime.kernels.torch_blocked:swiglu", ExpertClass(d_model=4096, d_ff=4096)
    )
    assert len(large.configs) == 540


@pytest.mark.parametrize("config", [{"BLOCK_M": 0}, {"ORDER": 3}])
def test_a_config_that_makes_no_sense_is_refused(config: dict[str, int]) -> None:
    with pytest.raises(InputError, match="the kernel cannot run; use blocks of at least 1"):
        torch_blocked.fc1(*inputs(1, torch.float32)[:2], **config)
