"""What every policy promises, over random batches, gates, prices and parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from policy_batches import (
    BY_PAST,
    BY_ROW,
    EQUAL,
    GATES,
    MIXED,
    Batch,
    E,
    draw_batch,
    same,
)
from torch import Tensor

from costprof.costmodel.table import CostTable
from costprof.routing import POLICIES, Assignment, Rows, route

NAMES = pytest.mark.parametrize("name", POLICIES)


@pytest.fixture(scope="module")
def tables(make_table: Callable[..., CostTable]) -> list[CostTable]:
    return [make_table(EQUAL, 4), make_table(MIXED, 4)]


@NAMES
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_neutral_setting_is_plain_top_k_bit_for_bit(
    name: str, data: st.DataObject, tables: list[CostTable]
) -> None:
    batch = draw_batch(data, name, tables)
    assert POLICIES[name]().neutral
    neutral = batch.route(policy=POLICIES[name]())
    assert same(neutral, batch.plain)
    assert torch.equal(neutral.counts, batch.plain.counts)
    if batch.policy.neutral:
        # Not only because nobody asks: asked, it gives the same answer.
        assert same(batch.route(policy=Asked(batch.policy)), batch.plain)


@dataclasses.dataclass(frozen=True)
class Asked:
    """A policy that is asked although it is neutral."""

    policy: Any
    neutral: bool = False

    def choose(self, plain: Any, **known: Any) -> Any:
        return self.policy.choose(plain, **known)


@NAMES
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_every_row_gets_what_it_is_promised(
    name: str, data: st.DataObject, tables: list[CostTable]
) -> None:
    batch = draw_batch(data, name, tables)
    got, plain, rows = batch.route(), batch.plain, batch.rows
    for t in range(len(batch.logits)):
        chosen = got.indices[t][got.used[t]].tolist()
        if not rows.real[t]:
            assert not chosen
            assert not got.weights[t].any()
            assert got.gate_mass_lost[t] == 0
            continue
        before = plain.indices[t].tolist()
        assert chosen
        assert len(set(chosen)) == len(chosen)
        lost = set(before) - set(chosen)
        if not lost:
            assert torch.equal(got.indices[t], plain.indices[t])
            assert torch.equal(got.weights[t], plain.weights[t])
        assert got.weights[t].sum().item() == pytest.approx(plain.weights[t].sum().item(), rel=1e-5)
        assert (got.weights[t] >= 0).all()
        assert not got.weights[t][~got.used[t]].any()
        scores = scores_of(batch)[t]
        mass = sum(scores[e].item() for e in before)
        given_up = sum(scores[e].item() for e in lost)
        assert got.gate_mass_lost[t].item() == pytest.approx(given_up / mass, abs=1e-6)
        assert lost <= may_lose(batch, t, before, scores)
        if hasattr(batch.policy, "q"):
            assert given_up <= (1 - batch.policy.q) * mass + 1e-6
    assert_batch_promises(batch, got, plain)


def scores_of(batch: Batch) -> Tensor:
    soft = batch.gate.score == "softmax"
    return torch.softmax(batch.logits, -1) if soft else torch.sigmoid(batch.logits)


def may_lose(batch: Batch, t: int, before: list[int], scores: Tensor) -> set[int]:
    """Which of its experts the policy may take from row `t`."""
    policy, name = batch.policy, name_of(batch.policy)
    mass = sum(scores[e].item() for e in before)
    movable = name in BY_ROW + BY_PAST or bool(batch.rows.lone_decode()[t])
    if not movable and not getattr(policy, "prefill", False):
        return set()
    if name == "topk":
        return set()
    if name == "fewer":
        return set(before[policy.k :])
    if name == "skip":
        return {e for e in before if scores[e] < policy.beta * scores[before[0]] + 1e-7}
    if name == "lynx":
        return {e for e in before[1:] if scores[e] < policy.affinity * mass + 1e-6}
    if name in ("static_optimal", "prune"):
        # A group that lost experts may no longer be chosen, nor then its other experts.
        if batch.gate.n_group > 1 or getattr(policy, "share", 0) > 0:
            return set(before)
        kept = getattr(policy, "kept", None)
        return set(getattr(policy, "off", ())) if kept is None else set(range(E)) - set(kept)
    if name == "cost_bias":
        return (
            set(before) if batch.table.moe.class_of_expert.count(first_class(batch)) < E else set()
        )
    firsts = {"oea": "k0", "budget": "keep", "cache_prior": "top_j", "statistical_balance": "keep"}
    return set(before[getattr(policy, firsts[name]) if name in firsts else 1 :])


def first_class(batch: Batch) -> str:
    return batch.table.moe.class_of_expert[0]


def name_of(policy: Any) -> str:
    return next(name for name, kind in POLICIES.items() if type(policy) is kind)


def assert_batch_promises(batch: Batch, got: Assignment, plain: Assignment) -> None:
    policy, name = batch.policy, name_of(batch.policy)
    active, before = set(got.counts.nonzero().flatten().tolist()), plain.counts > 0
    if name in ("oea", "budget", "lynx", "fewer", "skip", "tile_round", "marginal"):
        assert all(before[e] for e in active)
    if name == "budget" and not policy.neutral:
        needed = plain_experts_needed(batch, plain, policy.keep)
        assert len(active) <= max(policy.experts, len(needed))
    if name == "lynx":
        assert len(active) >= int(before.sum()) - int(policy.drop * int(before.sum()))
    if name == "prune":
        assert not active & set(policy.off)
    if name == "static_optimal" and policy.kept is not None:
        assert active <= set(policy.kept)
    if name == "tile_round" and not policy.neutral:
        for e in range(E):
            if got.counts[e] < plain.counts[e]:
                assert got.counts[e] == plain.counts[e] // policy.block_m * policy.block_m


def plain_experts_needed(batch: Batch, plain: Assignment, keep: int) -> set[int]:
    needed: set[int] = set()
    lone = batch.rows.lone_decode()
    for t in range(len(batch.logits)):
        if batch.rows.real[t]:
            needed |= set(plain.indices[t][: keep if lone[t] else None].tolist())
    return needed


@NAMES
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_expert_is_read_that_nobody_uses(
    name: str, data: st.DataObject, tables: list[CostTable]
) -> None:
    batch = draw_batch(data, name, tables)
    got = batch.route()
    used = got.indices[got.used]
    assert torch.equal(got.counts, torch.bincount(used, minlength=E))
    if batch.rows.real.any():
        assert (got.counts[got.indices] > 0).all()
    assert not got.weights[~got.used].any()


@NAMES
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_padding_changes_nothing(name: str, data: st.DataObject, tables: list[CostTable]) -> None:
    batch = draw_batch(data, name, tables)
    rows, tokens = batch.rows, len(batch.logits)
    got = batch.route()
    at = torch.tensor(sorted(data.draw(st.permutations(range(tokens + 5)))[:tokens]))
    more = torch.cat([torch.full((tokens + 2, E), torch.nan), torch.full((3, E), 50.0)])
    more[at] = batch.logits

    def spread(values: Tensor, filler: int) -> Tensor:
        return torch.full((tokens + 5,), filler, dtype=values.dtype).scatter_(0, at, values)

    padded = batch.route(
        logits=more,
        rows=Rows(
            real=spread(rows.real, 0),
            sequence=spread(rows.sequence, 1),
            position=spread(rows.position, 0),
            is_prefill=spread(rows.is_prefill, 1),
        ),
    )
    assert torch.equal(padded.counts, got.counts)
    real = rows.real
    for field in ("indices", "weights", "used", "gate_mass_lost"):
        assert torch.equal(getattr(padded, field)[at][real], getattr(got, field)[real])
    assert equal_histories(padded.history, got.history)


def equal_histories(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if dataclasses.is_dataclass(one):
        names = [each.name for each in dataclasses.fields(one)]
        return all(equal_histories(getattr(one, n), getattr(other, n)) for n in names)
    return bool(one == other)


@NAMES
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_batch_invariant_rows_do_not_depend_on_companions(
    name: str, data: st.DataObject, tables: list[CostTable]
) -> None:
    batch = draw_batch(data, name, tables)
    got = batch.route(batch_invariant=True)
    for t in range(len(batch.logits)):
        if batch.rows.real[t]:
            alone = batch.route(
                logits=batch.logits[t : t + 1], rows=Rows.decode(1), batch_invariant=True
            )
            assert torch.equal(got.indices[t], alone.indices[0])
            assert torch.equal(got.weights[t], alone.weights[0])


@pytest.mark.parametrize("name", BY_ROW + BY_PAST)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_policies_that_route_rows_by_themselves_do(
    name: str, data: st.DataObject, tables: list[CostTable]
) -> None:
    batch = draw_batch(data, name, tables)
    got = batch.route()
    for t in range(len(batch.logits)):
        if batch.rows.real[t]:
            alone = batch.route(logits=batch.logits[t : t + 1], rows=Rows.decode(1))
            assert torch.equal(got.indices[t][got.used[t]], alone.indices[0][alone.used[0]])
            assert torch.equal(got.weights[t], alone.weights[0])


@NAMES
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_row_sees_later_tokens_of_its_own_sequence(
    name: str, data: st.DataObject, tables: list[CostTable]
) -> None:
    batch = draw_batch(data, name, tables)
    assume(not getattr(batch.policy, "prefill", False))
    got, rows = batch.route(), batch.rows
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    for t in range(len(batch.logits)):
        later = (rows.sequence == rows.sequence[t]) & rows.real
        later[: t + 1] = False
        if not rows.real[t] or not later.any():
            continue
        other = batch.logits.clone()
        other[later] = torch.randn(int(later.sum()), E, generator=generator) * 3
        again = batch.route(logits=other)
        assert torch.equal(again.indices[t][again.used[t]], got.indices[t][got.used[t]])
        assert torch.equal(again.weights[t], got.weights[t])


@NAMES
def test_a_row_that_is_not_finite_keeps_top_k_and_moves_nobody(
    name: str, tables: list[CostTable]
) -> None:
    bold: dict[str, dict[str, Any]] = {
        "topk": {},
        "fewer": {"k": 1},
        "skip": {"beta": 1.0},
        "oea": {"k0": 1},
        "budget": {"experts": 3},
        "lynx": {"drop": 0.9, "affinity": 0.9},
        "cache_prior": {"lam": 1.0},
        "cost_bias": {"alpha": 9.0},
        "statistical_balance": {"rate": 0.1},
        "prune": {"off": (0, 1, 2)},
        "tile_round": {"block_m": 4, "q": 0.1},
        "static_optimal": {"kept": (3, 4, 5, 6)},
        "marginal": {"lam": 5.0, "q": 0.1},
    }
    logits = torch.randn(6, E, generator=torch.Generator().manual_seed(3))
    broken = torch.cat([logits, torch.full((1, E), torch.nan)])
    settings_ = {"table": tables[1], "gate": GATES[0], "policy": POLICIES[name](**bold[name])}
    before = route(broken[5:], **settings_).history
    plain = route(broken, table=tables[1], gate=GATES[0])
    got = route(broken, **settings_, history=before)
    assert torch.equal(got.indices[6], plain.indices[6])
    if name != "topk":
        assert not torch.equal(got.indices[:6], plain.indices[:6]) or not got.used[:6].all()
    assert torch.isfinite(got.weights[:6]).all()
    assert ((got.gate_mass_lost >= 0) & (got.gate_mass_lost <= 1)).all()
