from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costprof.core.errors import InputError
from costprof.profiler.counts import layer_counts


@given(
    experts=st.integers(1, 40),
    tokens=st.integers(1, 200),
    data=st.data(),
    name=st.sampled_from(["balanced", "zipf-1.0", "zipf-3", "active"]),
)
def test_counts_add_up_and_no_expert_sees_a_token_twice(
    experts: int, tokens: int, data: st.DataObject, name: str
) -> None:
    top_k = data.draw(st.integers(1, experts))
    active = data.draw(st.integers(top_k, experts))
    distribution = f"active-{active}" if name == "active" else name
    counts = layer_counts(experts, top_k, tokens, distribution)
    assert len(counts) == experts
    assert sum(counts) == tokens * top_k
    assert all(0 <= count <= tokens for count in counts)
    if name == "active":
        assert not any(counts[active:])
    if name != "balanced":
        assert list(counts) == sorted(counts, reverse=True)


def test_balanced_counts_differ_by_at_most_one() -> None:
    counts = layer_counts(7, 2, 10, "balanced")
    assert max(counts) - min(counts) == 1


def test_unknown_distributions_and_too_few_experts_are_refused() -> None:
    with pytest.raises(InputError, match="distribution 'normal' is unknown"):
        layer_counts(4, 2, 8, "normal")
    with pytest.raises(InputError, match="keeps 2 of 4 experts active at top-k 3"):
        layer_counts(4, 3, 8, "active-2")
