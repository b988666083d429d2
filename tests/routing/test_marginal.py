"""What the table-priced policy promises, over random batches, gates and prices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_batches import BALANCED, EQUAL, GATES, MIXED, OBJECTIVES, E
from torch import Tensor

from costprof.core.errors import InputError, TableError
from costprof.costmodel.table import CostTable
from costprof.routing import Gate, Marginal, Objective, Rows, TopK, route


@pytest.fixture(scope="module")
def tables(make_table: Callable[..., CostTable]) -> list[CostTable]:
    return [make_table(EQUAL, 4), make_table(MIXED, 4)]


@st.composite
def batches(draw: st.DrawFn) -> dict[str, Any]:
    tokens = draw(st.integers(1, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randn(tokens, E, generator=generator) * draw(st.sampled_from([0.3, 1.0, 4.0]))
    if draw(st.booleans()):
        logits = logits.round()  # ties
    flags = st.lists(st.booleans(), min_size=tokens, max_size=tokens)
    rows = Rows(
        real=torch.tensor(draw(flags)),
        sequence=torch.tensor(draw(st.lists(st.integers(0, 12), min_size=tokens, max_size=tokens))),
        position=torch.zeros(tokens, dtype=torch.int64),
        is_prefill=torch.tensor(draw(flags)) & torch.tensor(draw(flags)),
    )
    policy = Marginal(
        lam=draw(st.sampled_from([0.0, 0.1, 0.5, 5.0])),
        budget=draw(st.sampled_from([1.0, 0.8, 0.3, 0.0])),
        q=draw(st.sampled_from([0.0, 0.5, 0.7, 0.95, 1.0])),
        objective=draw(st.sampled_from(OBJECTIVES + BALANCED)),
        prefill=draw(st.booleans()),
    )
    return {
        "logits": logits,
        "rows": draw(st.sampled_from([rows, Rows.decode(tokens)])),
        "policy": policy,
        "gate": draw(st.sampled_from(GATES)),
    }


@settings(max_examples=200, deadline=None)
@given(batch=batches(), which=st.integers(0, 1))
def test_every_promise_holds_for_every_row(
    batch: dict[str, Any], which: int, tables: list[CostTable]
) -> None:
    table, gate, rows, policy = tables[which], batch["gate"], batch["rows"], batch["policy"]
    got = route(**batch, table=table)
    plain = route(**{**batch, "policy": TopK()}, table=table)
    scores = softmax_or_sigmoid(batch["logits"], gate)
    may_change = rows.real if policy.prefill else rows.lone_decode()
    active = set(got.indices[got.used].tolist())
    for t in range(len(batch["logits"])):
        if not rows.real[t]:
            assert not got.weights[t].any()
            assert not got.used[t].any()
            assert got.gate_mass_lost[t] == 0
            continue
        if not may_change[t]:
            assert torch.equal(got.indices[t], plain.indices[t])
            assert torch.equal(got.weights[t], plain.weights[t])
        before = plain.indices[t].tolist()
        chosen = got.indices[t][got.used[t]].tolist()
        assert len(set(chosen)) == len(chosen)
        assert before[0] in chosen
        mass = sum(scores[t, e].item() for e in before)
        kept = sum(scores[t, e].item() for e in before if e in chosen)
        assert kept >= policy.q * mass - 1e-6 * mass
        assert got.gate_mass_lost[t].item() == pytest.approx(1 - kept / mass, abs=1e-6)
        assert got.weights[t].sum().item() == pytest.approx(plain.weights[t].sum().item(), rel=1e-5)
        assert got.weights[t][~got.used[t]].count_nonzero() == 0
        assert_refilled_in_rank_order(t, chosen, before, active, scores, gate)
    if rows.real.any():
        assert (got.counts[got.indices] > 0).all()
    assert got.counts.tolist() == [
        sum(e in got.indices[t][got.used[t]].tolist() for t in range(len(batch["logits"])))
        for e in range(E)
    ]
    if rows.real.any():
        cost = policy.objective.layer(got.counts, table, plain=plain.counts)
        assert cost <= 1 + 1e-12


def softmax_or_sigmoid(logits: Tensor, gate: Gate) -> Tensor:
    return torch.softmax(logits, -1) if gate.score == "softmax" else torch.sigmoid(logits)


def assert_refilled_in_rank_order(
    t: int, chosen: list[int], before: list[int], active: set[int], scores: Tensor, gate: Gate
) -> None:
    ranking = scores[t] if gate.bias is None else scores[t] + gate.bias
    allowed = set(range(E))
    if gate.n_group > 1:
        groups = ranking.view(gate.n_group, -1)
        best = groups.topk(gate.group_top).values.sum(-1).topk(gate.topk_group).indices.tolist()
        allowed = {e for e in range(E) if e // (E // gate.n_group) in best}
    refills = [e for e in chosen if e not in before]
    assert set(refills) <= allowed & active
    spare = [e for e in allowed & active if e not in before and e not in refills]
    if refills and spare:
        assert min(ranking[e] for e in refills) >= max(ranking[e] for e in spare)
    assert len(chosen) == gate.top_k or not spare


@settings(max_examples=60, deadline=None)
@given(batch=batches(), which=st.integers(0, 1), seed=st.integers(0, 2**31))
def test_padding_and_the_order_of_rows_change_nothing(
    batch: dict[str, Any], which: int, seed: int, tables: list[CostTable]
) -> None:
    table, rows, logits = tables[which], batch["rows"], batch["logits"]
    tokens = len(logits)
    got = route(**batch, table=table)
    place = torch.randperm(tokens + 5, generator=torch.Generator().manual_seed(seed))
    padding = torch.cat([torch.full((2, E), torch.nan), torch.full((3, E), 50.0)])
    more = Rows(
        real=torch.cat([rows.real, torch.zeros(5, dtype=torch.bool)])[place],
        sequence=torch.cat([rows.sequence, torch.arange(5)])[place],
        position=torch.cat([rows.position, torch.zeros(5, dtype=torch.int64)])[place],
        is_prefill=torch.cat([rows.is_prefill, torch.ones(5, dtype=torch.bool)])[place],
    )
    padded = route(
        torch.cat([logits, padding])[place],
        table=table,
        gate=batch["gate"],
        policy=batch["policy"],
        rows=more,
    )
    back = torch.argsort(place)[:tokens]
    real = rows.real
    assert torch.equal(padded.counts, got.counts)
    assert torch.equal(padded.indices[back][real], got.indices[real])
    assert torch.equal(padded.weights[back][real], got.weights[real])
    assert torch.equal(padded.gate_mass_lost[back], got.gate_mass_lost)


@settings(max_examples=40, deadline=None)
@given(batch=batches(), seed=st.integers(0, 2**31))
def test_no_row_sees_later_tokens_of_its_own_sequence(
    batch: dict[str, Any], seed: int, tables: list[CostTable]
) -> None:
    """Other logits for the companions of a row in its sequence leave its routing as it was."""
    if batch["policy"].prefill:
        return
    rows, logits = batch["rows"], batch["logits"]
    got = route(**batch, table=tables[0])
    generator = torch.Generator().manual_seed(seed)
    for t in range(len(logits)):
        companions = (rows.sequence == rows.sequence[t]) & rows.real
        companions[t] = False
        other = logits.clone()
        other[companions] = torch.randn(E, generator=generator)
        again = route(**{**batch, "logits": other}, table=tables[0])
        if companions.any() and rows.real[t]:
            assert torch.equal(again.indices[t], got.indices[t])
            assert torch.equal(again.weights[t], got.weights[t])


def test_the_costly_expert_goes_and_the_cheap_one_stays(
    make_table: Callable[..., CostTable],
) -> None:
    """Two second choices of equal mass: the one that costs ten times as much is dropped."""
    prices = [(10.0, 1.0, 1.0)] * 3 + [(100.0, 1.0, 1.0)]
    table = make_table(prices, 2)
    logits = torch.log(torch.tensor([[0.6, 0.05, 0.3, 0.05], [0.04, 0.6, 0.06, 0.3]]))
    got = route(logits, table=table, gate=Gate(top_k=2), policy=Marginal(lam=0.3, q=0.5))
    assert got.indices.tolist() == [[0, 2], [1, 2]]
    assert got.gate_mass_lost.tolist() == pytest.approx([0.0, 1 / 3], abs=1e-6)
    assert got.weights[1].tolist() == pytest.approx([0.6 / 0.66, 0.06 / 0.66])


def test_energy_and_latency_can_ask_for_different_experts(
    make_table: Callable[..., CostTable],
) -> None:
    prices = [(10.0, 1.0, 1.0)] * 2 + [(100.0, 1.0, 0.1), (50.0, 1.0, 10.0)]
    table = make_table(prices, 3)
    logits = torch.log(torch.tensor([[0.5, 0.02, 0.24, 0.24]]))
    dropped = {}
    for name in ("latency", "energy"):
        policy = Marginal(lam=0.12, q=0.5, objective=Objective.of({name: 1.0}))
        got = route(logits, table=table, gate=Gate(top_k=3), policy=policy)
        dropped[name] = [e for e in (2, 3) if got.counts[e] == 0]
    assert dropped == {"latency": [2], "energy": [3]}


def test_bytes_ask_for_the_largest_expert_however_fast_it_is(
    make_table: Callable[..., CostTable],
) -> None:
    """The last expert stores most; the one before it takes ten times as long."""
    table = make_table([(10.0, 1.0, 1.0)] * 2 + [(100.0, 1.0, 1.0), (5.0, 1.0, 1.0)], 3)
    assert table.expert_weight_bytes.argmax() == 3
    logits = torch.log(torch.tensor([[0.5, 0.02, 0.24, 0.24]]))
    dropped = {}
    for name in ("latency", "memory"):
        goal = Objective.of({name: 1.0})
        got = route(
            logits, table=table, gate=Gate(top_k=3), policy=Marginal(lam=0.15, objective=goal)
        )
        dropped[name] = [e for e in (2, 3) if got.counts[e] == 0]
    assert dropped == {"latency": [2], "memory": [3]}


def test_a_budget_of_bytes_is_met(make_table: Callable[..., CostTable]) -> None:
    table = make_table(MIXED, 4)
    logits = torch.randn(6, E, generator=torch.Generator().manual_seed(5)) * 2
    goal = Objective(latency=0, memory=1)
    awake = []
    for budget in (1.0, 0.8, 0.6):
        policy = Marginal(budget=budget, q=0.3, objective=goal)
        got = route(logits, table=table, gate=GATES[0], policy=policy)
        awake.append(float(((got.counts > 0) * table.expert_weight_bytes).sum()))
    assert awake[1] <= 0.8 * awake[0]
    assert awake[2] <= 0.6 * awake[0]


def test_a_budget_is_met_with_the_least_loss_or_approached(
    make_table: Callable[..., CostTable],
) -> None:
    table = make_table(EQUAL, 4)
    logits = torch.randn(6, E, generator=torch.Generator().manual_seed(5)) * 2
    gate = Gate(top_k=4)
    plain = route(logits, table=table, gate=gate).predicted.latency_us
    costs, losses = [], []
    for budget in (1.0, 0.9, 0.8, 0.7, 0.0):
        got = route(logits, table=table, gate=gate, policy=Marginal(budget=budget, q=0.6))
        costs.append(float(got.predicted.latency_us / plain))
        losses.append(float(got.gate_mass_lost.mean()))
    assert costs[1] <= 0.9
    assert costs[2] <= 0.8
    assert costs == sorted(costs, reverse=True)
    assert losses == sorted(losses)
    assert losses[0] == 0.0
    assert costs[-1] > 0.0


def test_few_active_experts_leave_slots_empty_at_weight_zero(
    make_table: Callable[..., CostTable],
) -> None:
    table = make_table(EQUAL, 4)
    logits = torch.randn(1, E, generator=torch.Generator().manual_seed(5))
    got = route(logits, table=table, gate=Gate(top_k=4), policy=Marginal(lam=9.0, q=0.0))
    first = logits.argmax().item()
    assert got.used.sum() == 1
    assert got.indices.tolist() == [[first] * 4]
    assert got.weights[got.used].tolist() == pytest.approx([1.0])
    assert not got.weights[~got.used].any()


def test_experts_of_a_prompt_are_kept_and_refilled_from(
    make_table: Callable[..., CostTable],
) -> None:
    table = make_table([(100.0, 1.0, 1.0)] * 5, 2)
    logits = torch.log(torch.tensor([[0.9, 0.05, 0.03, 0.01, 0.01], [0.01, 0.02, 0.9, 0.04, 0.03]]))
    rows = Rows(
        real=torch.tensor([True, True]),
        sequence=torch.tensor([0, 1]),
        position=torch.tensor([3, 9]),
        is_prefill=torch.tensor([True, False]),
    )
    got = route(logits, table=table, gate=Gate(top_k=2), policy=Marginal(lam=9.0), rows=rows)
    assert got.indices.tolist() == [[0, 1], [2, 1]]
    assert got.counts.tolist() == [1, 2, 1, 0, 0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lam": -1.0}, "lam is -1.0; the policy cannot be built; use at least 0"),
        ({"lam": math.inf}, "lam is inf; .*"),
        ({"lam": math.nan}, "lam is nan; .*"),
        ({"budget": 1.5}, "budget is 1.5; .*; use 0 … 1"),
        ({"q": -0.1}, "q is -0.1; .*; use 0 … 1"),
        ({"q": 2}, "q is 2; .*; use 0 … 1"),
    ],
)
def test_parameters_out_of_range_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Marginal(**fields)


def test_an_objective_the_table_does_not_price_is_refused(
    make_table: Callable[..., CostTable],
) -> None:
    table = make_table([(100.0, 1.0, 0.0)] * E, 4)
    for name in ("energy", "thermal"):
        policy = Marginal(lam=1.0, objective=Objective.of({name: 1.0}))
        with pytest.raises(TableError, match="energy_mj is 0 or not finite; nothing can be"):
            route(torch.randn(3, E), table=table, gate=Gate(top_k=4), policy=policy)


def test_a_row_that_is_not_finite_neither_moves_nor_loses_anything(
    tables: list[CostTable],
) -> None:
    logits = torch.randn(6, E, generator=torch.Generator().manual_seed(3))
    broken = torch.cat([logits, torch.full((1, E), torch.nan)])
    for table in tables:
        plain = route(broken, table=table, gate=GATES[0], policy=TopK())
        # So little may be given that only a broken sum of gate mass could pay for a drop.
        timid = route(broken, table=table, gate=GATES[0], policy=Marginal(lam=1e-6, q=0.3))
        assert torch.equal(timid.indices, plain.indices)
        bold = route(broken, table=table, gate=GATES[0], policy=Marginal(lam=5.0, q=0.3))
        assert torch.equal(bold.indices[6], plain.indices[6])
        assert ((bold.gate_mass_lost >= 0) & (bold.gate_mass_lost <= 0.7 + 1e-6)).all()
