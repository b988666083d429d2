"""Policies whose parameters follow the state, and costs that follow an objective."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from policy_batches import EQUAL, GATES, MIXED, E, same

from costprof.costmodel.table import CostTable
from costprof.routing import POLICIES, Marginal, Objective, Scheduled, SystemState, route


@pytest.fixture(scope="module")
def tables(make_table: Callable[..., CostTable]) -> list[CostTable]:
    return [make_table(EQUAL, 4), make_table(MIXED, 4)]


def test_a_schedule_reads_the_state(tables: list[CostTable]) -> None:
    policy = Scheduled.of(POLICIES["oea"], k0=lambda state: 1 if state.stage == "hot" else None)
    logits = torch.randn(8, E, generator=torch.Generator().manual_seed(0))
    settings_ = {"table": tables[0], "gate": GATES[0], "policy": policy}
    cool, hot = (route(logits, **settings_, state=SystemState(stage=s)) for s in ("cool", "hot"))
    assert same(cool, route(logits, table=tables[0], gate=GATES[0]))
    straight = route(logits, table=tables[0], gate=GATES[0], policy=POLICIES["oea"](k0=1))
    assert same(hot, straight)
    assert hot.counts.count_nonzero() < cool.counts.count_nonzero()


def test_a_schedule_by_stage_keeps_each_policys_own_history(tables: list[CostTable]) -> None:
    balance, prior = POLICIES["statistical_balance"](rate=0.1), POLICIES["cache_prior"](lam=0.2)
    policy = Scheduled.by_stage(cool=balance, hot=prior)
    history, alone = None, {"cool": None, "warm": None, "hot": None, "critical": None}
    for step, stage in enumerate(("cool", "hot", "warm", "critical", "cool")):
        logits = torch.randn(6, E, generator=torch.Generator().manual_seed(step))
        state = SystemState(stage=stage)
        common = {"table": tables[0], "gate": GATES[0]}
        got = route(logits, **common, policy=policy, state=state, history=history)
        part = ("cool", "warm") if stage in ("cool", "warm") else ("hot", "critical")
        inner = balance if stage in ("cool", "warm") else prior
        expected = route(logits, **common, policy=inner, history=alone[part[0]])
        alone.update(dict.fromkeys(part, expected.history))
        history = got.history
        assert same(got, expected)


def test_rounding_follows_its_objective(tables: list[CostTable]) -> None:
    logits = torch.randn(12, E, generator=torch.Generator().manual_seed(4))
    for objective in (Objective(), Objective(latency=0, energy=1), Objective(latency=0, memory=1)):
        policy = POLICIES["tile_round"](block_m=4, q=0.6, objective=objective)
        got = route(logits, table=tables[1], gate=GATES[0], policy=policy)
        plain = route(logits, table=tables[1], gate=GATES[0])
        assert got.counts.sum() < plain.counts.sum()


def test_what_is_saved_may_follow_the_state(tables: list[CostTable]) -> None:
    """Bytes while cool, heat and joules while hot."""
    bytes_, heat = Objective(latency=0, memory=1), Objective(latency=0, thermal=1, energy=1)
    policy = Scheduled.of(
        Marginal, lam=0.05, objective=lambda state: heat if state.stage == "hot" else bytes_
    )
    logits = torch.randn(6, E, generator=torch.Generator().manual_seed(4))
    common = {"table": tables[1], "gate": GATES[0]}
    chosen = []
    for stage, goal in (("cool", bytes_), ("hot", heat)):
        got = route(logits, **common, policy=policy, state=SystemState(stage=stage))
        assert same(got, route(logits, **common, policy=Marginal(lam=0.05, objective=goal)))
        chosen.append(got)
    assert not torch.equal(chosen[0].counts, chosen[1].counts)
