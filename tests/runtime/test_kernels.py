"""Every kernel against a naive float64 reference, loops and all."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from costprof.core.errors import InputError
from costprof.core.expert import INT4_GROUP_SIZE, ExpertClass
from costprof.core.work import expert_weight_bytes
from costprof.runtime.kernels import (
    torch_attention,
    torch_ffn,
    torch_grouped,
    torch_grouped_mm,
    torch_int4,
)

D_MODEL, D_FF = 128, 64

# Relative to the largest output: rounding of one product plus accumulation in that type.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def naive_expert(x: Tensor, w1: Tensor, w2: Tensor, activation: str) -> Tensor:
    x, w1, w2 = x.double(), w1.double(), w2.double()
    d_ff = w2.shape[1]
    out = torch.zeros(x.shape[0], w2.shape[0], dtype=torch.float64)
    for t in range(x.shape[0]):
        hidden = [(w1[row] * x[t]).sum().item() for row in range(w1.shape[0])]
        if activation == "swiglu":
            hidden = [
                hidden[i] / (1 + math.exp(-hidden[i])) * hidden[i + d_ff] for i in range(d_ff)
            ]
        else:
            hidden = [max(value, 0.0) for value in hidden]
        out[t] = w2 @ torch.tensor(hidden, dtype=torch.float64)
    return out


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
    packed, scale = torch_int4.pack_weight(weight)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, groups * INT4_GROUP_SIZE // 2)
    restored = torch_int4.unpack_weight(packed, scale, torch.float32)
    for row in range(rows):
        for column in range(weight.shape[1]):
            step = weight[row].view(-1, INT4_GROUP_SIZE)[column // INT4_GROUP_SIZE].abs().max() / 7
            assert abs(restored[row, column] - weight[row, column]) <= step / 2 * 1.0001
    again, _ = torch_int4.pack_weight(restored)
    assert torch.equal(again, packed)


def test_a_group_of_zeros_comes_back_as_zeros() -> None:
    packed, scale = torch_int4.pack_weight(torch.zeros(2, INT4_GROUP_SIZE))
    assert torch.equal(
        torch_int4.unpack_weight(packed, scale, torch.float32), torch.zeros(2, INT4_GROUP_SIZE)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["swiglu", "relu"])
def test_int4_experts_compute_with_the_unpacked_weights(
    activation: str, dtype: torch.dtype
) -> None:
    expert = ExpertClass(
        d_model=D_MODEL, d_ff=D_FF, activation=activation, quantisation="int4", dtype="float32"
    )
    w1, w2 = weights(activation, dtype)
    x = torch.randn(3, D_MODEL).to(dtype)
    kernel = {"swiglu": torch_int4.swiglu_int4, "relu": torch_int4.relu_int4}[activation]
    packed = kernel.prepare((w1, w2), expert)
    dense = torch_int4.unpack(*torch_int4.unpack.prepare((w1, w2), expert))
    assert [weight.dtype for weight in dense] == [dtype, dtype]
    with torch.inference_mode():
        assert_close(kernel(x, *packed), naive_expert(x, *dense, activation), dtype)


def test_int4_parts_compose_to_the_whole() -> None:
    expert = ExpertClass(d_model=D_MODEL, d_ff=D_FF, quantisation="int4", dtype="float32")
    w1, w2 = weights("swiglu", torch.float32)
    x = torch.randn(3, D_MODEL)
    hidden = torch_int4.fc1_int4(x, *torch_int4.fc1_int4.prepare((w1,), expert))
    parts = torch_int4.fc2_int4(
        torch_ffn.silu_mul(hidden), *torch_int4.fc2_int4.prepare((w2,), expert)
    )
    whole = torch_int4.swiglu_int4(x, *torch_int4.swiglu_int4.prepare((w1, w2), expert))
    assert torch.equal(parts, whole)


def test_packed_bytes_are_those_the_work_model_counts() -> None:
    expert = ExpertClass(d_model=D_MODEL, d_ff=D_FF, quantisation="int4")
    packed = torch_int4.pack(*weights("swiglu", torch.bfloat16))
    assert sum(part.nbytes for part in packed) == expert_weight_bytes(expert)


def test_packing_refuses_a_width_without_whole_groups() -> None:
    with pytest.raises(InputError, match=r"\[4, 65\] has no whole groups of 64 columns; .*; use"):
        torch_int4.pack_weight(torch.zeros(4, 65))


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
