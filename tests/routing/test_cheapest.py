"""More lambda, or less budget, drops a superset at no higher price, however prices differ."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_batches import BALANCED, EQUAL, GATES, MIXED, OBJECTIVES, Batch, E, draw_batch

from costprof.costmodel.table import CostTable
from costprof.routing import Assignment, Gate, Marginal, Objective, route
from costprof.routing.cheapest import prefix_counts
from costprof.routing.gate import select
from costprof.routing.kernels import marginal_cpu
from costprof.routing.kernels.dispatch import compiled_decision
from costprof.routing.pruning import sum_by_expert
from costprof.routing.reselection import replace

MakeTable = Callable[..., CostTable]
PRICE = st.tuples(
    st.sampled_from([1.0, 10.0, 50.0, 100.0]),
    st.sampled_from([0.0, 0.5, 5.0, 20.0]),
    st.sampled_from([0.1, 1.0, 4.0]),
)
CASES = 120


@pytest.fixture(scope="module")
def tables(make_table: MakeTable) -> list[CostTable]:
    return [make_table(EQUAL, 4), make_table(MIXED, 4)]


def drawn_table(data: st.DataObject, make_table: MakeTable) -> CostTable:
    """A table whose classes each have a price of waking and one per token, one as any other."""
    kinds = data.draw(st.lists(PRICE, min_size=1, max_size=4, unique=True))
    prices = data.draw(st.lists(st.sampled_from(kinds), min_size=E, max_size=E))
    return make_table(prices, 4)


@pytest.fixture(params=["compiled", "tensors"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "tensors":
        monkeypatch.setattr(marginal_cpu, "available", lambda: False)
    return str(request.param)


def assert_nested_at_no_higher_price(
    batch: Batch, objective: Objective, policies: Sequence[Marginal]
) -> None:
    got = [batch.route(policy=policy) for policy in policies]
    plain = batch.plain
    counts = torch.stack([plain.counts, *(each.counts for each in got)])
    costs = objective.layer(counts, batch.table, plain=plain.counts).tolist()
    for less, more in itertools.pairwise(got):
        assert not ((more.counts > 0) & (less.counts == 0)).any()
    assert all(b <= a for a, b in itertools.pairwise(costs[1:]))
    for cost, each in zip(costs[1:], got, strict=True):
        if not torch.equal(each.counts, plain.counts):
            assert cost < costs[0]
        assert cost < costs[0] or not each.gate_mass_lost.any()


@settings(max_examples=CASES, deadline=None)
@given(data=st.data())
@pytest.mark.usefixtures("by")
def test_more_lam_gives_nested_active_sets_at_no_higher_price(
    data: st.DataObject, make_table: MakeTable
) -> None:
    batch = draw_batch(data, "marginal", [drawn_table(data, make_table)])
    objective = data.draw(st.sampled_from(OBJECTIVES))
    lams = sorted(data.draw(st.sets(st.floats(0.0, 20.0), min_size=2, max_size=5)))
    fixed: dict[str, Any] = {
        "q": data.draw(st.sampled_from([0.0, 0.5, 0.7, 0.9])),
        "budget": data.draw(st.sampled_from([1.0, 0.8])),
        "objective": objective,
    }
    policies = [Marginal(lam=lam, **fixed) for lam in lams]
    assert_nested_at_no_higher_price(batch, objective, policies)


@settings(max_examples=CASES, deadline=None)
@given(data=st.data())
@pytest.mark.usefixtures("by")
def test_less_budget_gives_nested_active_sets_at_no_higher_price(
    data: st.DataObject, make_table: MakeTable
) -> None:
    batch = draw_batch(data, "marginal", [drawn_table(data, make_table)])
    objective = data.draw(st.sampled_from(OBJECTIVES))
    budgets = sorted(data.draw(st.sets(st.floats(0.0, 1.0), min_size=2, max_size=5)), reverse=True)
    policies = [Marginal(budget=each, q=0.3, objective=objective) for each in budgets]
    assert_nested_at_no_higher_price(batch, objective, policies)


@settings(max_examples=CASES, deadline=None)
@given(data=st.data())
def test_compiled_code_finds_the_cheapest_that_tensors_find(
    data: st.DataObject, make_table: MakeTable
) -> None:
    batch = draw_batch(data, "marginal", [drawn_table(data, make_table)])
    policy = Marginal(
        lam=data.draw(st.sampled_from([0.0, 0.1, 1.0, 20.0])),
        budget=data.draw(st.sampled_from([1.0, 0.8, 0.0])),
        q=data.draw(st.sampled_from([0.0, 0.5])),
        objective=data.draw(st.sampled_from(OBJECTIVES)),
    )
    fast = batch.route(policy=policy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(marginal_cpu, "available", lambda: False)
        slow = batch.route(policy=policy)
    assert torch.equal(fast.indices, slow.indices)
    assert torch.equal(fast.used, slow.used)
    assert torch.equal(fast.counts, slow.counts)
    assert torch.equal(fast.gate_mass_lost, slow.gate_mass_lost)


@pytest.mark.usefixtures("by")
def test_no_mass_is_given_up_for_a_layer_that_is_no_cheaper(make_table: MakeTable) -> None:
    """Without the first expert the layer costs 81 µs; without the second too 131 µs, as before."""
    table = make_table([(50.0, 0.0, 1.0), (10.0, 0.0, 1.0), (1.0, 20.0, 1.0), (50.0, 0.0, 2.0)], 2)
    logits = torch.tensor(
        [
            [1.6709, 0.2838, -0.0027, 3.0318],
            [-1.7529, -0.1758, -0.45, 0.2411],
            [-1.1855, -1.7819, -2.5988, 1.7739],
            [0.7529, 0.1733, 1.1568, 0.5072],
        ]
    )
    got: list[Assignment] = [
        route(logits, table=table, gate=Gate(top_k=2), policy=Marginal(lam=lam, q=0.2))
        for lam in (0.0, 0.2, 0.5, 1.0)
    ]
    assert [float(each.predicted.latency_us) for each in got] == [131.0, 81.0, 81.0, 81.0]
    assert [each.counts.tolist() for each in got[1:]] == [[0, 3, 1, 4]] * 3


def test_on_a_gpu_tensors_search() -> None:
    scores = SimpleNamespace(is_cuda=True, is_cpu=False, shape=(4, E))
    plain: Any = SimpleNamespace(scores=scores, weights=SimpleNamespace(requires_grad=False))
    assert compiled_decision(plain, search=False) is not None
    assert compiled_decision(plain, search=True) is None


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), gate=st.sampled_from(GATES), ties=st.booleans())
def test_counts_after_each_turn_are_those_of_refilled_rows(
    seed: int, gate: Gate, ties: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, E, generator=generator) * 2
    plain = select(logits.round() if ties else logits, gate)
    real = torch.rand(5, generator=generator) < 0.8
    awake = sum_by_expert(plain.indices, real.unsqueeze(-1).expand_as(plain.indices), E) > 0
    turn = torch.randperm(E, generator=generator)
    turn = turn.masked_fill(turn >= seed % E, E)
    turn[plain.indices[:, 0]] = E  # as each row's first stays
    for n, counts in enumerate(prefix_counts(plain, turn, awake, real)):
        gone = turn < n
        got = replace(plain, gone[plain.indices], awake & ~gone)
        used = got.used & real.unsqueeze(-1)
        assert torch.equal(counts, sum_by_expert(got.indices, used, E))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_more_lam_drops_more_or_nothing_where_balance_counts(
    data: st.DataObject, tables: list[CostTable]
) -> None:
    batch = draw_batch(data, "marginal", tables)
    objective = data.draw(st.sampled_from(BALANCED))
    lams = sorted(data.draw(st.sets(st.floats(0.0, 20.0), min_size=2, max_size=5)))
    got = [batch.route(policy=Marginal(lam=lam, q=0.5, objective=objective)) for lam in lams]
    for less, more in itertools.pairwise(got):
        nested = not ((more.counts > 0) & (less.counts == 0)).any()
        assert nested or torch.equal(more.indices, batch.plain.indices)
