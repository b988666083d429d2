"""Counts drawn for a named routing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from costprof.core.errors import InputError
from costprof.costmodel.grouped.token_counts import TILE_ROWS, rank_counts, rank_load


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
