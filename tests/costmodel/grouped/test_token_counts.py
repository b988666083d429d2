"""Counts drawn for a named routing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from costprof.core.errors import InputError
from costprof.costmodel.grouped.token_counts import TILE_ROWS, _level, rank_counts, rank_load


@settings(max_examples=60, deadline=None)
@example(tokens=1, log_experts=3, top_k=5, log_ep=0, routing="balanced")
@given(
    tokens=st.integers(1, 300),
    log_experts=st.integers(1, 6),
    top_k=st.integers(1, 8),
    log_ep=st.integers(0, 4),
    routing=st.sampled_from(["balanced", "power_law_1.01", "power_law_1.2", "power_law_2.5"]),
)
def test_every_token_chooses_top_k_different_experts(
    tokens: int, log_experts: int, top_k: int, log_ep: int, routing: str
) -> None:
    experts, ep = 2**log_experts, 2 ** min(log_ep, log_experts)
    top_k = min(top_k, experts)
    whole = rank_counts(tokens, experts, top_k, 1, routing, draws=3)
    assert whole.min() >= 0
    assert whole.max() <= tokens
    assert (whole.sum(axis=1) == tokens * top_k).all()
    rank = rank_counts(tokens, experts, top_k, ep, routing, draws=3)
    assert rank.shape[1] == experts // ep
    if routing != "balanced":  # the busiest rank is measured
        assert (rank.sum(axis=1) * ep >= tokens * top_k).all()


def token_by_token(tokens: int, experts: int, top_k: int) -> list[int]:
    """Count balanced choices one by one."""
    stride = -(-experts // top_k)
    if (top_k - 1) * stride >= experts:
        stride = experts // top_k
    apart = max(1.0, stride / tokens)
    counts = [0] * experts
    for token in range(tokens):
        for choice in range(top_k):
            counts[int((token * apart + choice * stride) % experts)] += 1
    return counts


@settings(max_examples=200, deadline=None)
@example(tokens=7, experts=7, top_k=7)
@given(tokens=st.integers(1, 300), experts=st.integers(1, 60), top_k=st.integers(1, 60))
def test_balanced_choices_are_those_counted_one_by_one(
    tokens: int, experts: int, top_k: int
) -> None:
    top_k = min(top_k, experts)
    (counts,) = rank_counts(tokens, experts, top_k, 1, "balanced").tolist()
    assert counts == token_by_token(tokens, experts, top_k)


def level_by_level(counts: list[int], missing: int, limit: int) -> list[int]:
    """Add copies to the first of the smallest counts one by one, or take from the largest."""
    step = 1 if missing > 0 else -1
    for _ in range(abs(missing)):
        edge = min(counts) if step > 0 else max(counts)
        if edge == (limit if step > 0 else 0):
            break
        counts[counts.index(edge)] += step
    return counts


@settings(max_examples=200, deadline=None)
@given(data=st.data(), limit=st.integers(0, 30), missing=st.integers(-150, 150))
def test_what_rounding_left_is_levelled_as_if_copy_by_copy(
    data: st.DataObject, limit: int, missing: int
) -> None:
    assume(missing != 0)
    counts = data.draw(st.lists(st.integers(0, limit), min_size=1, max_size=12))
    levelled = np.array(counts)
    _level(levelled, missing, limit)
    assert levelled.tolist() == level_by_level(counts, missing, limit)


@pytest.mark.parametrize("routing", ["balanced", "power_law_1.2"])
def test_the_largest_batch_and_layer_are_dealt_in_no_time(routing: str) -> None:
    tokens, experts, top_k = 10**9, 65_536, 40_000
    counts = rank_counts(tokens, experts, top_k, 1, routing, draws=1)
    assert counts.sum() == tokens * top_k
    assert counts.max() <= tokens


def test_few_balanced_tokens_are_spread_over_the_experts() -> None:
    assert rank_counts(2, 8, 2, 1, "balanced").tolist() == [[1, 0, 1, 0, 1, 0, 1, 0]]
    assert rank_counts(1, 8, 2, 2, "balanced").tolist() == [[1, 0, 0, 0]]


def test_a_load_counts_active_experts_and_begun_tiles() -> None:
    load = rank_load([64], [4], [1], [1], ["balanced"])
    assert load.active.tolist() == [4.0]
    assert load.assignments.tolist() == [64.0]
    assert load.busiest.tolist() == [16.0]
    assert load.tiles.tolist() == [[4.0, 4.0, 4.0, 4.0]]
    assert load.spread.tolist() == [0.0]
    skewed = rank_load([1024], [64], [4], [8], ["power_law_1.2"])
    assert skewed.assignments[0] > 1024 * 4 / 8
    assert skewed.spread[0] > 0
    assert (np.diff(skewed.tiles[0]) <= 0).all()
    assert len(TILE_ROWS) == skewed.tiles.shape[1]


def test_a_routing_nobody_knows_is_refused() -> None:
    with pytest.raises(InputError, match="unknown"):
        rank_counts(1, 8, 2, 1, "zipf")
    with pytest.raises(InputError, match="unknown"):
        rank_counts(1, 8, 2, 1, "power_law_1.0")
