"""Every kernel against a naive float64 reference, loops and all."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import naive_expert, naive_layer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from costprof.core.errors import InputError
from costprof.core.expert import INT4_GROUP_SIZE, ExpertClass
from costprof.core.work import expert_weight_bytes
from costprof.runtime.kernels import (
    packing,
    torch_attention,
    torch_ffn,
    torch_grouped,
    torch_grouped_mm,
    torch_packed,
)

D_MODEL, D_FF = 128, 64

# Relative to the largest output: rounding of one product plus accumulation in that type.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def weights(activation: str, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    wide = 2 * D_FF if activation == "swiglu" else D_FF
    w1 = torch.randn(wide, D_MODEL, generator=generator) / math.sqrt(D_MODEL)
    w2 = torch.randn(D_MODEL, D_FF, generator=generator) / math.sqrt(D_FF)
    return w1.to(dtype), w2.to(dtype)


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert actual.dtype == dtype
    error = (actual.double() - expected).abs().max()
    assert error <= TOLERANCE[dtype] * expected.abs().max().clamp(min=1e-30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["swiglu", "relu"])
@pytest.mark.parametrize("tokens", [1, 5])
def test_whole_experts_and_their_parts(activation: str, dtype: torch.dtype, tokens: int) -> None:
    w1, w2 = weights(activation, dtype)
    x = torch.randn(tokens, D_MODEL).to(dtype)
    expected = naive_expert(x, w1, w2, activation)
    whole = {"swiglu": torch_ffn.swiglu, "relu": torch_ffn.relu}[activation]
    act = {"swiglu": torch_ffn.silu_mul, "relu": torch_ffn.relu_activation}[activation]
    with torch.inference_mode():
        assert_close(whole(x, w1, w2), expected, dtype)
        parts = torch_ffn.fc2(act(torch_ffn.fc1(x, w1)), w2)
    assert torch.equal(parts, whole(x, w1, w2))


def test_no_tokens_give_no_rows() -> None:
    w1, w2 = weights("swiglu", torch.float32)
    assert torch_ffn.swiglu(torch.empty(0, D_MODEL), w1, w2).shape == (0, D_MODEL)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 6),
    groups=st.integers(1, 3),
    magnitude=st.floats(1e-6, 1e4),
    seed=st.integers(0, 2**31),
)
def test_packing_is_off_by_at_most_half_a_step(
    rows: int, groups: int, magnitude: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, groups * INT4_GROUP_SIZE, generator=generator) * magnitude
    packed, scale = packing.pack_int4(weight)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, groups * INT4_GROUP_SIZE // 2)
    restored = packing.unpack_weight(packed, scale, torch.float32)
    for row in range(rows):
        for column in range(weight.shape[1]):
            step = weight[row].view(-1, INT4_GROUP_SIZE)[column // INT4_GROUP_SIZE].abs().max() / 7
            assert abs(restored[row, column] - weight[row, column]) <= step / 2 * 1.0001
    again, _ = packing.pack_int4(restored)
    assert torch.equal(again, packed)


def test_a_group_of_zeros_comes_back_as_zeros() -> None:
    packed, scale = packing.pack_int4(torch.zeros(2, INT4_GROUP_SIZE))
    assert torch.equal(
        packing.unpack_weight(packed, scale, torch.float32), torch.zeros(2, INT4_GROUP_SIZE)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["swiglu", "relu"])
@pytest.mark.parametrize("quantisation", ["int8", "int4", "fp8"])
def test_packed_experts_compute_with_the_unpacked_weights(
    quantisation: str, activation: str, dtype: torch.dtype
) -> None:
    expert = ExpertClass(
        d_model=D_MODEL,
        d_ff=D_FF,
        activation=activation,
        quantisation=quantisation,
        dtype="float32",
    )
    w1, w2 = weights(activation, dtype)
    x = torch.randn(3, D_MODEL).to(dtype)
    kernel = {"swiglu": torch_packed.swiglu, "relu": torch_packed.relu}[activation]
    packed = kernel.prepare((w1, w2), expert)
    dense = torch_packed.unpack(*torch_packed.unpack.prepare((w1, w2), expert))
    assert [weight.dtype for weight in dense] == [dtype, dtype]
    with torch.inference_mode():
        assert_close(kernel(x, *packed), naive_expert(x, *dense, activation), dtype)


def test_packed_parts_compose_to_the_whole() -> None:
    expert = ExpertClass(d_model=D_MODEL, d_ff=D_FF, quantisation="int4", dtype="float32")
    w1, w2 = weights("swiglu", torch.float32)
    x = torch.randn(3, D_MODEL)
    hidden = torch_packed.linear(x, *torch_packed.linear.prepare((w1,), expert))
    parts = torch_packed.linear(
        torch_ffn.silu_mul(hidden), *torch_packed.linear.prepare((w2,), expert)
    )
    whole = torch_packed.swiglu(x, *torch_packed.swiglu.prepare((w1, w2), expert))
    assert torch.equal(parts, whole)


@pytest.mark.parametrize("quantisation", ["int8", "int4", "fp8"])
def test_packed_bytes_are_those_the_work_model_counts(quantisation: str) -> None:
    expert = ExpertClass(d_model=D_MODEL, d_ff=D_FF, quantisation=quantisation)
    pack = getattr(torch_packed, f"pack_to_{quantisation}")
    packed = pack(*weights("swiglu", torch.bfloat16))
    assert sum(part.nbytes for part in packed) == expert_weight_bytes(expert)


@pytest.mark.parametrize(("quantisation", "step"), [("int8", 1 / 254), ("fp8", 1 / 16)])
def test_eight_bits_are_off_by_at_most_half_a_step(quantisation: str, step: float) -> None:
    weight = torch.randn(4, 6, 96) * torch.logspace(-4, 4, 6)[:, None]
    values, scale = getattr(packing, f"pack_{quantisation}")(weight)
    assert (values.shape, scale.shape) == ((4, 6, 96), (4, 6))
    restored = packing.unpack_weight(values, scale, torch.float32)
    # An integer's steps are all alike; a float's grow with the value, down to its least normal.
    largest = weight.abs().amax(-1, keepdim=True)
    size = largest if quantisation == "int8" else torch.maximum(weight.abs(), largest * 2**-14)
    assert bool(((restored - weight).abs() <= step * size * 1.0001).all())


@pytest.mark.parametrize("activation", ["swiglu", "relu"])
def test_a_layer_on_packed_weights(activation: str) -> None:
    expert = ExpertClass(
        d_model=D_MODEL, d_ff=D_FF, activation=activation, quantisation="int8", dtype="float32"
    )
    counts = [2, 0, 1]
    pairs = [weights(activation, torch.float32, seed) for seed in range(3)]
    packed = packing.pack_weights(tuple(map(torch.stack, zip(*pairs, strict=True))), expert)
    kernel = getattr(torch_packed, f"grouped_{activation}")
    x = torch.randn(3, D_MODEL)
    actual = kernel(x, torch.tensor(counts, dtype=torch.int32), *packed)
    dense = [packing.unpack_weight(*packed[i : i + 2], torch.float32) for i in (0, 2)]
    assert_close(actual, naive_layer(x, counts, *dense, activation), torch.float32)


def test_layers_pack_expert_by_expert() -> None:
    expert = ExpertClass(d_model=D_MODEL, d_ff=D_FF, quantisation="int4", dtype="float32")
    pairs = [weights("swiglu", torch.float32, seed) for seed in range(3)]
    layer = packing.pack_weights(tuple(map(torch.stack, zip(*pairs, strict=True))), expert)
    for number, pair in enumerate(pairs):
        alone = packing.pack_weights(pair, expert)
        assert all(torch.equal(a[number], b) for a, b in zip(layer, alone, strict=True))


class LargestFloat32(TorchDispatchMode):
    """Remembers the elements of the largest float32 tensor that was made."""

    elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.dtype == torch.float32:
            self.elements = max(self.elements, made.numel())
        return made


@pytest.mark.parametrize("quantisation", ["int8", "int4", "fp8"])
def test_a_layer_is_packed_an_expert_at_a_time_to_the_same_bits(quantisation: Any) -> None:
    expert = ExpertClass(d_model=128, d_ff=64, quantisation=quantisation)
    weight = torch.randn(5, 128, 128).to(torch.bfloat16)
    with LargestFloat32() as largest:
        packed = packing.pack_weights((weight,), expert)
    assert largest.elements == weight[0].numel()
    at_once = getattr(packing, f"pack_{quantisation}")(weight)
    for part, expected in zip(packed, at_once, strict=True):
        assert part.dtype == expected.dtype
        assert torch.equal(part.view(torch.uint8), expected.view(torch.uint8))


def test_packing_refuses_formats_that_are_only_priced() -> None:
    weights = (torch.zeros(64, 64), torch.zeros(64, 32))
    with pytest.raises(InputError, match="mxfp4 can be priced but not run"):
        packing.pack_weights(weights, ExpertClass(d_model=64, d_ff=32, quantisation="mxfp4"))


def test_packing_refuses_a_width_without_whole_groups() -> None:
    with pytest.raises(InputError, match=r"\[4, 65\] has no whole groups of 64 columns; .*; use"):
        packing.pack_int4(torch.zeros(4, 65))


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
def test_decode_attention(heads: int, kv_heads: int) -> None:
    tokens, length, head_dim = 3, 5, 8
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x = normal(tokens, D_MODEL)
    w_qkv = normal((heads + 2 * kv_heads) * head_dim, D_MODEL) / math.sqrt(D_MODEL)
    w_o = normal(D_MODEL, heads * head_dim)
    k_cache = normal(tokens, kv_heads, length, head_dim)
    v_cache = normal(tokens, kv_heads, length, head_dim)
    expected = naive_attention(x, w_qkv, w_o, k_cache, v_cache)
    with torch.inference_mode():
        actual = torch_attention.decode_attention(x, w_qkv, w_o, k_cache, v_cache)
        again = torch_attention.decode_attention(x, w_qkv, w_o, k_cache, v_cache)
    assert_close(actual, expected, torch.float32)
    assert torch.equal(actual, again)


def naive_attention(
    x: Tensor, w_qkv: Tensor, w_o: Tensor, k_cache: Tensor, v_cache: Tensor
) -> Tensor:
    x, w_qkv, w_o = x.double(), w_qkv.double(), w_o.double()
    tokens, kv_heads, length, head_dim = k_cache.shape
    heads = w_o.shape[1] // head_dim
    out = torch.zeros(tokens, w_o.shape[0], dtype=torch.float64)
    for t in range(tokens):
        projected = (w_qkv @ x[t]).view(-1, head_dim)
        attended = []
        for head in range(heads):
            kv_head = head // (heads // kv_heads)
            keys = k_cache[t, kv_head].double().clone()
            values = v_cache[t, kv_head].double().clone()
            keys[length - 1] = projected[heads + kv_head]
            values[length - 1] = projected[heads + kv_heads + kv_head]
            scores = torch.stack([projected[head] @ key for key in keys]) / math.sqrt(head_dim)
            attended.append(torch.softmax(scores, 0) @ values)
        out[t] = w_o @ torch.cat(attended)
    return out


@pytest.mark.parametrize("module", [torch_grouped, torch_grouped_mm])
@pytest.mark.parametrize("activation", ["swiglu", "relu"])
def test_grouped_layer_deals_rows_and_never_reads_an_empty_expert(
    activation: str, module: ModuleType
) -> None:
    counts = torch.tensor([2, 0, 3, 0], dtype=torch.int32)
    pairs = [weights(activation, torch.float32, seed) for seed in range(4)]
    w1, w2 = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    w1[1], w2[3] = float("nan"), float("nan")
    x = torch.randn(5, D_MODEL)
    name = module.__name__.rpartition(".")[2].removeprefix("torch_")
    with torch.inference_mode():
        actual = getattr(module, f"{name}_{activation}")(x, counts, w1, w2)
    assert_close(actual[:2], naive_expert(x[:2], *pairs[0], activation), torch.float32)
    assert_close(actual[2:], naive_expert(x[2:], *pairs[2], activation), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("counts", [[3, 0, 5, 1], [0, 0, 0, 4], [2, 2, 2, 2], [0, 0, 0, 0]])
def test_torchs_grouped_product_is_the_loop_over_experts(
    counts: list[int], dtype: torch.dtype
) -> None:
    pairs = [weights("swiglu", dtype, seed) for seed in range(4)]
    w1, w2 = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    x = torch.randn(sum(counts), D_MODEL).to(dtype)
    rows = torch.tensor(counts, dtype=torch.int32)
    with torch.inference_mode():
        actual = torch_grouped_mm.grouped_mm_swiglu(x, rows, w1, w2)
        expected = torch_grouped.grouped_swiglu(x, rows, w1, w2).double()
    assert actual.shape == expected.shape
    if x.shape[0]:
        assert_close(actual, expected, dtype)


def test_grouped_layer_refuses_counts_that_do_not_fit() -> None:
    w1, w2 = torch.zeros(2, 8, 4), torch.zeros(2, 4, 4)
    with pytest.raises(InputError, match=r"2 counts summing to 3 for 2 experts and 4 rows; .*"):
        torch_grouped.grouped_swiglu(
            torch.zeros(4, 4), torch.tensor([1, 2], dtype=torch.int32), w1, w2
        )
