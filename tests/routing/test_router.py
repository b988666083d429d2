"""`route` with a neutral policy, padding, and what `Rows` lets be changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from costprof.core.errors import InputError
from costprof.costmodel.table import CostTable
from costprof.routing import Assignment, Gate, Marginal, Rows, TopK, route

E, K = 12, 3
PRICES = [(50.0, 1.0, 2.0)] * E


@pytest.fixture(scope="module")
def table(make_table: Callable[..., CostTable]) -> CostTable:
    return make_table(PRICES, K)


def rows_of(real: list[bool], sequence: list[int], prefill: list[bool]) -> Rows:
    return Rows(
        real=torch.tensor(real),
        sequence=torch.tensor(sequence),
        position=torch.arange(len(real)),
        is_prefill=torch.tensor(prefill),
    )


NEUTRAL = [TopK(), Marginal(), Marginal(lam=3.0, q=1.0), Marginal(lam=0.0, budget=1.0, q=0.0)]


@pytest.mark.parametrize("policy", NEUTRAL)
@pytest.mark.parametrize("renormalise", [True, False])
def test_a_neutral_policy_is_plain_top_k_bit_for_bit(
    policy: object, renormalise: bool, table: CostTable
) -> None:
    logits = torch.randn(9, E, generator=torch.Generator().manual_seed(0))
    scores = torch.softmax(logits, -1)
    values, indices = scores.topk(K, -1)
    weights = values / values.sum(-1, keepdim=True) if renormalise else values
    gate = Gate(top_k=K, renormalise=renormalise)
    got = route(logits, table=table, gate=gate, policy=policy, history="kept")
    assert torch.equal(got.indices, indices)
    assert torch.equal(got.weights, weights)
    assert got.used.all()
    assert torch.equal(got.counts, torch.bincount(indices.flatten(), minlength=E))
    assert torch.equal(got.predicted.latency_us, table.layer_cost(got.counts).latency_us)
    assert not got.gate_mass_lost.any()
    assert got.history == "kept"


@pytest.mark.parametrize("policy", [TopK(), Marginal(lam=0.5)])
def test_an_assignment_is_the_callers_to_write_into(policy: object, table: CostTable) -> None:
    logits = torch.randn(9, E, generator=torch.Generator().manual_seed(0))
    known = {"table": table, "gate": Gate(top_k=K), "policy": policy}
    first = route(logits, **known)
    expected = [each.clone() for each in tensors_of(first)]
    for each in tensors_of(first):
        each.fill_(1) if each.dtype is torch.int64 else each.logical_not_()
    got = tensors_of(route(logits, **known))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def tensors_of(assignment: Assignment) -> list[torch.Tensor]:
    return [
        getattr(assignment, name)
        for name in ("indices", "weights", "used", "counts", "gate_mass_lost")
    ]


def test_batch_invariance_routes_every_row_by_itself(table: CostTable) -> None:
    logits = torch.randn(9, E, generator=torch.Generator().manual_seed(0))
    eager = Marginal(lam=10.0, q=0.0)
    gate = Gate(top_k=K)
    assert route(logits, table=table, gate=gate, policy=eager).counts.count_nonzero() < E
    got = route(logits, table=table, gate=gate, policy=eager, batch_invariant=True)
    for t in range(9):
        alone = route(logits[t : t + 1], table=table, gate=gate)
        assert torch.equal(got.indices[t], alone.indices[0])
        assert torch.equal(got.weights[t], alone.weights[0])


def test_padding_rows_use_no_expert_and_point_at_an_active_one(table: CostTable) -> None:
    logits = torch.randn(4, E, generator=torch.Generator().manual_seed(1))
    logits[1] = float("nan")
    rows = rows_of([True, False, True, False], [0, 1, 2, 3], [False] * 4)
    got = route(logits, table=table, gate=Gate(top_k=K), rows=rows)
    plain = route(logits[[0, 2]], table=table, gate=Gate(top_k=K))
    assert torch.equal(got.indices[[0, 2]], plain.indices)
    assert torch.equal(got.weights[[0, 2]], plain.weights)
    assert torch.equal(got.counts, plain.counts)
    assert got.weights[[1, 3]].tolist() == [[0.0] * K] * 2
    assert not got.used[[1, 3]].any()
    assert (got.counts[got.indices] > 0).all()


def test_a_batch_of_padding_alone_wakes_nobody(table: CostTable) -> None:
    rows = rows_of([False] * 3, [0, 1, 2], [False] * 3)
    for policy in (TopK(), Marginal(lam=1.0)):
        got = route(torch.randn(3, E), table=table, gate=Gate(top_k=K), rows=rows, policy=policy)
        assert not got.counts.any()
        assert not got.weights.any()


def test_an_empty_batch_is_an_empty_assignment(table: CostTable) -> None:
    got = route(torch.empty(0, E), table=table, gate=Gate(top_k=K), policy=Marginal(lam=1.0))
    assert got.indices.shape == (0, K)
    assert not got.counts.any()


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.booleans()), min_size=1, max_size=12)
)
def test_only_rows_alone_of_their_sequence_may_be_changed(
    described: list[tuple[bool, int, bool]],
) -> None:
    real, sequence, prefill = (list(column) for column in zip(*described, strict=True))
    expected = []
    for t in range(len(real)):
        companions = [s for s in range(len(real)) if real[s] and sequence[s] == sequence[t]]
        expected.append(real[t] and not prefill[t] and companions == [t])
    assert rows_of(real, sequence, prefill).lone_decode().tolist() == expected


def test_rows_of_unequal_length_or_type_are_refused() -> None:
    with pytest.raises(InputError, match=r"rows.position is torch.int64 \[1\]; .*int64 \[2\]"):
        rows_of([True, True], [0, 1], [False, False]).__class__(
            real=torch.tensor([True, True]),
            sequence=torch.tensor([0, 1]),
            position=torch.tensor([0]),
            is_prefill=torch.tensor([False, False]),
        )


def test_a_table_of_another_layer_is_refused(table: CostTable) -> None:
    with pytest.raises(InputError, match=r"8 router logits per row, 12 experts in the table; .*"):
        route(torch.zeros(2, 8), table=table, gate=Gate(top_k=2))


def test_rows_must_describe_each_row_of_logits(table: CostTable) -> None:
    with pytest.raises(InputError, match=r"2 rows of logits, 3 described; .*; describe each row"):
        route(torch.zeros(2, E), table=table, gate=Gate(top_k=2), rows=Rows.decode(3))
