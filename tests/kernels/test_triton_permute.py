"""Laying expert rows side by side and back, against loops over a list."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import naive_expert, relative_error

from costprof.core.errors import InputError
from costprof.runtime.kernels.triton_experts import grouped_swiglu
from costprof.runtime.kernels.triton_permute import permute, unpermute
from costprof.runtime.permutation import _by_sorting, _by_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EXPERTS = 5
routed = st.integers(1, 4).flatmap(
    lambda k: st.lists(
        st.lists(st.integers(-1, EXPERTS), min_size=k, max_size=k), min_size=1, max_size=12
    )
)


@settings(max_examples=40, deadline=None)
@given(indices=routed, width=st.integers(1, 40))
def test_rows_lie_by_expert_in_the_order_of_their_tokens(
    indices: list[list[int]], width: int
) -> None:
    x = torch.randn(len(indices), width, device=DEVICE)
    chosen = torch.tensor(indices, device=DEVICE)
    top_k = chosen.shape[1]
    permuted = permute(x, chosen, EXPERTS)
    flat = [expert for row in indices for expert in row]
    expected = [slot for e in range(EXPERTS) for slot, of in enumerate(flat) if of == e]
    assert permuted.counts.tolist() == [flat.count(e) for e in range(EXPERTS)]
    assert [permuted.position[slot].item() for slot in expected] == list(range(len(expected)))
    left_out = set(range(len(flat))) - set(expected)
    assert all(permuted.position[slot] == -1 for slot in left_out)
    for row, slot in enumerate(expected):
        assert torch.equal(permuted.rows[row], x[slot // top_k])

    weights = torch.rand(len(indices), top_k, device=DEVICE)
    back = unpermute(permuted.rows, permuted.position, weights)
    total = torch.zeros_like(x)
    for token, row in enumerate(indices):
        for rank, expert in enumerate(row):
            if 0 <= expert < EXPERTS:
                total[token] += weights[token, rank] * x[token]
    assert torch.allclose(back, total, rtol=1e-5, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), tokens=st.integers(0, 30), top_k=st.integers(1, 3))
def test_slots_of_one_expert_more_come_last(seed: int, tokens: int, top_k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    expert = torch.randint(0, EXPERTS + 1, (tokens, top_k), generator=generator).to(DEVICE)
    counted, by_sorting = _by_triton(expert, EXPERTS + 1), _by_sorting(expert)
    assert torch.equal(counted.slots, by_sorting.slots)
    assert torch.equal(counted.places, by_sorting.places)


def test_more_slots_than_one_block_holds() -> None:
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(0, EXPERTS, (1500, 1), generator=generator).to(DEVICE)
    x = torch.arange(1500.0, device=DEVICE).unsqueeze(1)
    permuted = permute(x, chosen, EXPERTS)
    expected = torch.sort(chosen.flatten(), stable=True).indices
    assert torch.equal(permuted.rows.flatten().long(), expected)
    assert torch.equal(permuted.counts.long(), torch.bincount(chosen.flatten(), minlength=EXPERTS))


def test_permute_experts_unpermute_is_the_layer() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 64, generator=generator)
    w1 = torch.randn(4, 64, 64, generator=generator) / 8
    w2 = torch.randn(4, 64, 32, generator=generator) / 6
    chosen = torch.tensor([[0, 2], [2, 3], [3, 0], [2, 0], [4, 4], [3, -1]])  # 4 and -1: padding
    weights = torch.rand(6, 2, generator=generator)
    on = [tensor.to(DEVICE) for tensor in (x, chosen, w1, w2, weights)]
    permuted = permute(on[0], on[1], 4)
    hidden = grouped_swiglu(
        permuted.rows, permuted.counts, on[2], on[3], BLOCK_M=16, BLOCK_N=32, BLOCK_K=32
    )
    actual = unpermute(hidden, permuted.position, on[4])
    expected = torch.zeros(6, 64, dtype=torch.float64)
    for token in range(6):
        for rank in range(2):
            expert = int(chosen[token, rank])
            if 0 <= expert < 4:
                one = naive_expert(x[token : token + 1], w1[expert], w2[expert], "swiglu")
                expected[token] += float(weights[token, rank]) * one[0]
    assert relative_error(actual, expected) <= 1e-5
    assert torch.equal(actual[4], torch.zeros(64, device=DEVICE))


def test_indices_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"indices have shape \[3\] for 2 tokens"):
        permute(torch.zeros(2, 4), torch.zeros(3, dtype=torch.int64), EXPERTS)
