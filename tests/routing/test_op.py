"""The decision as an operator: well registered, one node of a trace, and what eager code gets."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from costprof.costmodel.table import CostTable
from costprof.routing import Assignment, Gate, Marginal, Objective, Rows, TopK, route
from costprof.routing.gate import select
from costprof.routing.kernels import marginal_cpu, op
from costprof.routing.pruning import ONE

E, T = 16, 10
POLICY = Marginal(lam=3.0, q=0.3)
GATES = [Gate(top_k=4), Gate(top_k=3, score="sigmoid", n_group=4, topk_group=2)]

Routed = Callable[..., tuple[torch.Tensor, ...]]


@pytest.fixture(scope="module")
def table(make_table: Callable[..., CostTable]) -> CostTable:
    return make_table([(100.0, 1.0, 2.0), (20.0, 6.0, 3.0)] * (E // 2), 4)


@pytest.fixture(autouse=True)
def forget_traces() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def batch(tokens: int = T, seed: int = 0) -> torch.Tensor:
    return torch.randn(tokens, E, generator=torch.Generator().manual_seed(seed)) * 1.5


def some_rows() -> Rows:
    coin = torch.rand(2, T, generator=torch.Generator().manual_seed(1)) < 0.8
    return Rows(
        real=coin[0],
        sequence=torch.arange(T).clamp_min(1),
        position=torch.zeros(T, dtype=torch.int64),
        is_prefill=~coin[1],
    )


def tensors_of(plan: Assignment) -> tuple[torch.Tensor, ...]:
    latency_us = plan.predicted.latency_us
    return (plan.indices, plan.used, plan.counts, plan.gate_mass_lost, latency_us, plan.weights)


def routed(table: CostTable, gate: Gate = GATES[0], policy: Any = POLICY) -> Routed:
    def call(logits: torch.Tensor, rows: Rows | None = None) -> tuple[torch.Tensor, ...]:
        return tensors_of(route(logits, table=table, gate=gate, policy=policy, rows=rows))

    return call


def arguments(table: CostTable, gate: Gate, device: str, described: bool) -> tuple[Any, ...]:
    plain, lookup = select(batch().to(device), gate), table.lookup(torch.device(device))
    rows = some_rows()
    real, changeable = rows.real.to(device), rows.lone_decode().to(device)
    return (
        *(plain.scores, plain.ranking, plain.indices, plain.weights),
        *((real, changeable) if described else (None, None)),
        *(lookup.values, lookup.class_index, lookup.slope, lookup.base),
        *(lookup.n_classes, lookup.max_tokens),
        *(0.5, 0.5, 1.0, 0.9, ONE // 2),
    )


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("described", [False, True])
@pytest.mark.parametrize("gate", GATES, ids=["softmax", "grouped"])
def test_the_operator_is_well_registered(
    table: CostTable, gate: Gate, described: bool, device: str
) -> None:
    torch.library.opcheck(op.marginal, arguments(table, gate, device, described))


@pytest.mark.parametrize("gate", GATES, ids=["softmax", "grouped"])
def test_its_shapes_need_no_values(table: CostTable, gate: Gate) -> None:
    expected = op.marginal(*arguments(table, gate, "cpu", True))
    got = op.marginal(*arguments(table, gate, "meta", True))
    assert all(each.is_meta for each in got)
    assert [(a.shape, a.dtype) for a in got] == [(a.shape, a.dtype) for a in expected]


@pytest.mark.parametrize("described", [False, True])
@pytest.mark.parametrize("gate", GATES, ids=["softmax", "grouped"])
@torch.inference_mode()
def test_a_trace_routes_as_eager_code_does(table: CostTable, gate: Gate, described: bool) -> None:
    call = routed(table, gate)
    rows = some_rows() if described else None
    got = torch.compile(call, fullgraph=True, backend="aot_eager")(batch(), rows)
    expected = call(batch(), rows)
    plain = routed(table, gate, TopK())(batch(), rows)
    assert not torch.equal(expected[0], plain[0])
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@torch.inference_mode()
def test_the_decision_is_one_node_of_the_trace(table: CostTable) -> None:
    seen: list[torch.fx.GraphModule] = []

    def keep(traced: torch.fx.GraphModule, _: list[torch.Tensor]) -> torch.fx.GraphModule:
        seen.append(traced)
        return traced

    torch.compile(routed(table), fullgraph=True, backend=keep)(batch())
    (traced,) = seen
    decisions = [node for node in traced.graph.nodes if "marginal" in str(node.target)]
    assert len(decisions) == 1


@torch.inference_mode()
def test_one_trace_serves_batches_of_any_size(table: CostTable) -> None:
    call = routed(table)
    traced = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (3, 17, 40):
        logits = batch(tokens, seed=tokens)
        assert all(torch.equal(a, b) for a, b in zip(traced(logits), call(logits), strict=True))


@torch.no_grad()
def test_it_can_be_exported(table: CostTable) -> None:
    class Router(torch.nn.Module):
        def forward(self, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return routed(table)(logits)

    exported = torch.export.export(Router(), (batch(),)).module()
    pairs = zip(exported(batch(seed=5)), Router()(batch(seed=5)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert type(routed(table)(batch())[1]) is torch.Tensor  # nothing of the trace was kept


@torch.inference_mode()
def test_without_a_compiler_the_trace_is_of_tensors(
    table: CostTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = routed(table)(batch())
    monkeypatch.setattr(marginal_cpu, "available", lambda: False)
    got = torch.compile(routed(table), fullgraph=True, backend="aot_eager")(batch())
    assert all(torch.equal(a, b) for a, b in zip(got[:5], expected[:5], strict=True))
    torch.testing.assert_close(got[5], expected[5], rtol=1e-6, atol=0)


@pytest.mark.parametrize("compiled", [False, True])
def test_weights_keep_their_gradient(
    table: CostTable, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = routed(table)
    if compiled:
        call = torch.compile(call, fullgraph=True, backend="aot_eager")

    def gradient() -> torch.Tensor:
        logits = batch().requires_grad_()
        call(logits)[5].square().sum().backward()
        assert logits.grad is not None
        return logits.grad

    got = gradient()
    monkeypatch.setattr(marginal_cpu, "available", lambda: False)
    assert got.abs().sum() > 0
    assert torch.equal(got, gradient())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles C++ for a CPU")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@torch.inference_mode()
def test_inductor_routes_as_eager_code_does(table: CostTable) -> None:
    call = routed(table)
    got = torch.compile(call, fullgraph=True)(batch())
    expected = call(batch())
    # Its softmax rounds for itself.
    assert all(torch.equal(a, b) for a, b in zip(got[:3], expected[:3], strict=True))
    for a, b in zip(got[3:], expected[3:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    "objective", [Objective(latency=1, memory=1), Objective(thermal=1, balance=1)]
)
def test_a_trace_prices_by_any_objective(table: CostTable, objective: Objective) -> None:
    """Two terms in the operator's columns; what does not fit there, by tensors."""
    call = routed(table, policy=Marginal(lam=0.1, q=0.3, objective=objective))
    traced = torch.compile(call, backend="aot_eager", fullgraph=True)
    for got, wanted in zip(traced(batch()), call(batch()), strict=True):
        assert torch.equal(got, wanted)


_TABLE: CostTable | None = None
_POLICY = Marginal()


def test_a_trace_may_find_its_table_among_the_globals(
    table: CostTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "_TABLE", table)
    for objective in (Objective(), Objective(latency=1, memory=1)):
        monkeypatch.setitem(globals(), "_POLICY", Marginal(lam=0.1, q=0.3, objective=objective))
        torch.compiler.reset()
        got = torch.compile(_routed_by_globals, backend="aot_eager")(batch())
        for one, other in zip(got, _routed_by_globals(batch()), strict=True):
            assert torch.equal(one, other)


def _routed_by_globals(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    assert _TABLE is not None
    return tensors_of(route(logits, table=_TABLE, gate=GATES[0], policy=_POLICY))
