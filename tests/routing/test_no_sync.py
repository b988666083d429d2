"""Policies neither wait for the device nor make shapes that depend on data.

On the meta device there are no values: whatever asks for one, or needs one to know a shape,
raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from costprof.costmodel.table import CostTable
from costprof.routing import (
    OEA,
    Budget,
    CachePrior,
    CostBias,
    Fewer,
    Gate,
    Lynx,
    Marginal,
    Objective,
    Prune,
    Rows,
    Skip,
    StaticSet,
    StatisticalBalance,
    TileRound,
    route,
)

E = 16
EVERY = Objective(latency=1, energy=1, thermal=1, memory=1, balance=1)
POLICIES = [
    Fewer(k=2),
    Skip(beta=0.5),
    OEA(k0=2),
    Budget(experts=5),
    Lynx(drop=0.3),
    CachePrior(lam=0.3),
    CostBias(alpha=1.0, beta=1.0),
    StatisticalBalance(rate=0.01),
    Prune(off=(1,)),
    Prune(share=0.3),
    TileRound(block_m=4, objective=EVERY),
    Marginal(lam=1.0, q=0.5),
    Marginal(budget=0.7, q=0.3, objective=Objective(latency=1, energy=1)),
    Marginal(lam=1.0, q=0.5, objective=Objective(latency=0, memory=1)),
    Marginal(lam=1.0, q=0.5, objective=EVERY),
    StaticSet(kept=(0, 1, 2, 3, 4, 5, 6, 7)),
]
GATES = [Gate(top_k=4), Gate(top_k=3, score="sigmoid", n_group=4, topk_group=2)]


@pytest.fixture(scope="module")
def table(make_table: Callable[..., CostTable]) -> CostTable:
    return make_table([(100.0, 1.0, 2.0), (20.0, 6.0, 3.0)] * (E // 2), 4)


def decided(table: CostTable, policy: Any, gate: Gate, device: str) -> Any:
    rows = Rows(
        real=torch.ones(6, dtype=torch.bool, device=device),
        sequence=torch.arange(6, device=device),
        position=torch.arange(6, device=device),
        is_prefill=torch.zeros(6, dtype=torch.bool, device=device),
    )
    logits = torch.randn(6, E, generator=torch.Generator().manual_seed(0)).to(device)
    known = {"table": table, "gate": gate, "policy": policy, "rows": rows}
    first = route(logits, **known)
    return route(logits, **known, history=first.history)


@pytest.mark.parametrize("gate", GATES, ids=["softmax", "grouped"])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_a_decision_needs_no_value_on_the_host(table: CostTable, policy: Any, gate: Gate) -> None:
    got = decided(table, policy, gate, "meta")
    assert got.indices.is_meta
    assert got.indices.shape == (6, gate.top_k)
    assert got.counts.shape == (E,)


def test_the_meta_device_does_find_a_wait() -> None:
    with pytest.raises(RuntimeError):
        bool(torch.ones(3, device="meta").any())
    with pytest.raises(RuntimeError):
        torch.ones(3, device="meta").nonzero()


@pytest.mark.gpu
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_a_decision_is_captured_in_a_cuda_graph_and_is_the_cpus(
    table: CostTable, policy: Any
) -> None:
    expected = decided(table, policy, GATES[0], "cpu")
    logits = torch.randn(6, E, generator=torch.Generator().manual_seed(0)).cuda()
    known: dict[str, Any] = {"table": table, "gate": GATES[0], "policy": policy}
    known["rows"] = Rows.decode(6, device="cuda")
    history = route(logits, **known).history
    route(logits, **known, history=history)  # what is kept on the device is put there once
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        got = route(logits, **known, history=history)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(got.indices.cpu(), expected.indices)
    assert torch.equal(got.counts.cpu(), expected.counts)
    torch.testing.assert_close(got.weights.cpu(), expected.weights)
