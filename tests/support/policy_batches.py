"""Random batches for every policy, with parameters, gates, prices and a history."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from costprof.costmodel.table import CostTable
from costprof.routing import POLICIES, Assignment, Gate, Objective, Rows, TopK, route

E = 16
EQUAL = [(100.0, 1.0, 2.0)] * E
MIXED = [(100.0, 1.0, 2.0), (20.0, 6.0, 3.0)] * (E // 2)
GATES = [
    Gate(top_k=4),
    Gate(top_k=4, renormalise=False),
    Gate(
        top_k=3,
        score="sigmoid",
        bias=torch.linspace(-0.2, 0.2, E),
        n_group=4,
        topk_group=2,
        scaling=2.5,
    ),
    Gate(top_k=3, bias=torch.linspace(-0.02, 0.02, E), n_group=4, topk_group=3, group_top=1),
]
OBJECTIVES = [
    Objective(),
    Objective(latency=0, energy=1),
    Objective(latency=1, energy=1),
    Objective(latency=0, memory=1),
    Objective(latency=0, thermal=1),
    Objective(latency=1, memory=2),
    Objective(latency=0, energy=1, thermal=3),
    Objective(latency=1, energy=1, memory=1),
    Objective(latency=1, energy=2, thermal=3, memory=4),
]
"""Of prices that each expert has by its own tokens, so that dropping one spares its price."""
BALANCED = [
    Objective(latency=0, balance=1),
    Objective(latency=1, balance=1),
    Objective(latency=1, energy=1, thermal=1, memory=1, balance=1),
]
SHARES = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])
EXPERTS = st.sets(st.integers(0, E - 1), min_size=1, max_size=E - 1).map(
    lambda chosen: tuple(sorted(chosen))
)
PARAMETERS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "topk": {},
    "fewer": {"k": st.integers(1, 5)},
    "skip": {"beta": SHARES},
    "oea": {"k0": st.integers(1, 5)},
    "budget": {"experts": st.integers(1, E + 1), "keep": st.integers(1, 5)},
    "lynx": {"drop": SHARES, "affinity": SHARES},
    "cache_prior": {"lam": st.sampled_from([0.0, 0.1, 1.0]), "top_j": st.integers(1, 5)},
    "cost_bias": {"alpha": st.sampled_from([0.0, 1.0, 9.0]), "beta": st.sampled_from([0.0, 3.0])},
    "statistical_balance": {"rate": st.sampled_from([0.0, 0.01, 0.5]), "keep": st.integers(1, 5)},
    "prune": {"off": st.one_of(st.just(()), EXPERTS), "share": SHARES},
    "tile_round": {"block_m": st.integers(1, 5), "q": SHARES, "prefill": st.booleans()},
    "static_optimal": {"kept": st.one_of(st.none(), EXPERTS)},
    "marginal": {
        "lam": st.sampled_from([0.0, 0.1, 0.5, 5.0]),
        "budget": st.sampled_from([1.0, 0.8, 0.0]),
        "q": SHARES,
        "objective": st.sampled_from(OBJECTIVES + BALANCED),
    },
}
BY_ROW = ("fewer", "skip", "cost_bias", "prune", "static_optimal")
"""Policies that route every row by itself, or by the past alone."""
BY_PAST = ("cache_prior", "statistical_balance")


@dataclasses.dataclass(frozen=True)
class Batch:
    logits: Tensor
    rows: Rows
    gate: Gate
    policy: Any
    history: Any
    table: CostTable

    def route(self, **other: Any) -> Assignment:
        fields = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        fields.update(other)
        return route(fields.pop("logits"), **fields)

    @property
    def plain(self) -> Assignment:
        return self.route(policy=TopK(), history=None)


def make_logits(draw: st.DrawFn, tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randn(tokens, E, generator=generator) * draw(st.sampled_from([0.3, 1.0, 4.0]))
    return logits.round() if draw(st.booleans()) else logits  # ties


def draw_batch(data: st.DataObject, name: str, tables: list[CostTable]) -> Batch:
    draw = data.draw
    tokens = draw(st.integers(1, 12))
    flags = st.lists(st.booleans(), min_size=tokens, max_size=tokens)
    rows = Rows(
        real=torch.tensor(draw(flags)),
        sequence=torch.tensor(draw(st.lists(st.integers(0, 12), min_size=tokens, max_size=tokens))),
        position=torch.zeros(tokens, dtype=torch.int64),
        is_prefill=torch.tensor(draw(flags)) & torch.tensor(draw(flags)),
    )
    policy = POLICIES[name](**{key: draw(value) for key, value in PARAMETERS[name].items()})
    gate, table = draw(st.sampled_from(GATES)), draw(st.sampled_from(tables))
    history = None
    for _ in range(draw(st.integers(0, 2))):
        before = make_logits(draw, 5)
        history = route(before, table=table, gate=gate, policy=policy, history=history).history
    return Batch(
        logits=make_logits(draw, tokens),
        rows=draw(st.sampled_from([rows, Rows.decode(tokens)])),
        gate=gate,
        policy=policy,
        history=history,
        table=table,
    )


def same(got: Assignment, other: Assignment, rows: Tensor | None = None) -> bool:
    at = slice(None) if rows is None else rows
    return all(
        torch.equal(getattr(got, name)[at], getattr(other, name)[at])
        for name in ("indices", "weights", "used", "gate_mass_lost")
    )
