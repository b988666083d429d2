"""What a parameter may be: no number that overflows, and none that only looks like another type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from costprof.core.errors import InputError
from costprof.costmodel.table import CostTable
from costprof.routing import (
    Budget,
    CachePrior,
    CostBias,
    Fewer,
    Gate,
    Marginal,
    Objective,
    Prune,
    StaticSet,
    StatisticalBalance,
    SystemState,
    TileRound,
    route,
)

E = 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CostBias(alpha=1e300), r"alpha is 1e\+300; .* be built; use 0 … 1e\+30"),
        (lambda: CostBias(beta=1e39), r"beta is 1e\+39; .*; use 0 … 1e\+30"),
        (lambda: CostBias(tokens=10**20), "tokens is 1000.*; use a whole number of 1 … 2147483647"),
        (lambda: CachePrior(lam=1e39), r"lam is 1e\+39; .*; use 0 … 1e\+30"),
        (lambda: StatisticalBalance(rate=1e39), r"rate is 1e\+39; .*; use 0 … 1e\+30"),
        (lambda: StatisticalBalance(max_bias=1e300), r"max_bias is 1e\+300; .*; use 0 … 1e\+30"),
        (lambda: TileRound(block_m=10**22), "block_m is 1000.*; use a whole number of 1 … 2147483"),
        (lambda: Budget(experts=2**31), "experts is 2147483648; .*; use a whole number of 1 … 214"),
        (lambda: Objective(memory=1e300), r"memory is 1e\+300; .*; use 0 … 1e\+30"),
        (lambda: Marginal(lam="a lot"), "lam is a lot; .*; use 0 … "),
        (lambda: Fewer(k=2.5), "k is 2.5; .*; use a whole number of at least 1"),
        (lambda: Marginal(prefill=1), "prefill is 1; .*; use True or False"),
        (lambda: TileRound(prefill="yes"), "prefill is 'yes'; .*; use True or False"),
        (lambda: Prune(off=[1, 2]), r"off is \[1, 2\]; .*; give a tuple of expert numbers"),
        (lambda: StaticSet(kept=[1, 2]), r"kept is \[1, 2\]; .*; give a tuple of expert numbers"),
        (lambda: SystemState(stage="bogus"), "stage 'bogus' is unknown; .*; use cool, warm, hot"),
    ],
)
def test_what_cannot_be_meant_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


LARGEST = [
    CostBias(alpha=1e30, beta=1e30, tokens=2**31 - 1),
    CachePrior(lam=1e30),
    StatisticalBalance(rate=1e30, max_bias=1e30),
    TileRound(block_m=2**31 - 1, q=0.0),
    Marginal(lam=1e30, objective=Objective(latency=1e30, energy=1e30)),
]


@pytest.mark.parametrize("policy", LARGEST, ids=lambda policy: type(policy).__name__)
def test_the_largest_that_may_be_given_overflows_nothing(
    make_table: Callable[..., CostTable], policy: Any
) -> None:
    table = make_table([(100.0, 1.0, 2.0), (20.0, 6.0, 3.0)] * (E // 2), 2)
    logits = torch.randn(6, E, generator=torch.Generator().manual_seed(0)) * 20
    for gate in (Gate(top_k=2), Gate(top_k=2, score="sigmoid")):
        history = None
        for _ in range(3):
            got = route(logits, table=table, gate=gate, policy=policy, history=history)
            history = got.history
            assert got.weights.isfinite().all()
            assert got.used.any(-1).all()
        # Logits that far down all have a sigmoid of 0, which asks for no other expert.
        if policy is LARGEST[0] and gate.score == "softmax":
            assert not torch.equal(got.indices, route(logits, table=table, gate=gate).indices)
        if isinstance(policy, StatisticalBalance):
            assert history.bias.isfinite().all()


@pytest.mark.parametrize("kind", [np.float32, np.float64, torch.tensor])
def test_scalars_of_numpy_and_torch_are_numbers(kind: Callable[[float], Any]) -> None:
    policy = Marginal(lam=kind(0.5), objective=Objective(latency=kind(2.0)))
    assert policy == Marginal(lam=0.5, objective=Objective(latency=2.0))
    assert type(policy.lam) is float
    assert type(policy.objective.latency) is float


@pytest.mark.parametrize("kind", [np.int64, np.int32, torch.tensor])
def test_whole_scalars_of_numpy_and_torch_are_whole(kind: Callable[[int], Any]) -> None:
    assert Fewer(k=kind(2)) == Fewer(k=2)
    assert type(Fewer(k=kind(2)).k) is int
    assert TileRound(prefill=np.bool_(True)).prefill is True
