"""Attached models under `torch.compile`: one graph, recorded and routed as eager ones."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_moes import LAYERS, flat_table, tiny_moe
from torch import Tensor
from watching import cache_name

from costprof.routing import CachePrior, Marginal, Skip, StatisticalBalance
from costprof.runtime.integrations import Attached, attach

POLICIES = (
    None,
    Marginal(lam=5.0, q=0.3),
    Skip(beta=0.5),
    CachePrior(lam=2.0),
    StatisticalBalance(rate=0.1, max_bias=1.0),
)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    made: int = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return made


def ids(batch: int = 4, length: int = 6) -> Tensor:
    return torch.randint(3, 64, (batch, length), generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def steps(model: Any, call: Any) -> list[Tensor]:
    """Return logits of a prompt and three decode steps with a static cache, by `call`."""
    import transformers

    cache = transformers.StaticCache(config=model.config, max_cache_len=12)
    mask = torch.zeros(4, 12, dtype=torch.int64)
    mask[:, :6] = 1
    mask[0, :2] = 0
    named = {cache_name(model): cache}
    every = [model(input_ids=ids(), attention_mask=mask, **named).logits]
    for past in range(6, 9):
        mask = mask.clone()
        mask[:, past] = 1
        every.append(call(input_ids=ids(4, 1) + past % 3, attention_mask=mask, **named).logits)
    return every


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("policy", POLICIES)
def test_one_graph_does_what_eager_code_does(family: str, policy: Any) -> None:
    model = tiny_moe(family, experts="batched_mm")
    steps(model, torch.compile(model, backend="aot_eager", fullgraph=True))
    alone = graphs()
    with attach(model, flat_table(), policy) as eager:
        want = steps(model, model)
    torch._dynamo.reset()
    attached = attach(model, flat_table(), policy)
    got = steps(model, torch.compile(model, backend="aot_eager", fullgraph=True))
    assert graphs() - alone == alone
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert attached.records == eager.records
    assert [record.is_prefill for record in attached.records[::LAYERS]] == [True] + [False] * 3


def test_a_policy_may_be_set_and_taken_off_after_compiling() -> None:
    model = tiny_moe("mixtral", experts="batched_mm")
    attached = attach(model, flat_table())
    compiled = torch.compile(model, backend="eager", fullgraph=True)

    def logits(policy: Any) -> Tensor:
        attached.policy = policy
        with torch.no_grad():
            out: Tensor = compiled(ids()).logits
            assert torch.equal(out, model(ids()).logits)
        return out

    plain = logits(None)
    assert not torch.equal(logits(Skip(beta=0.9)), plain)
    assert torch.equal(logits(None), plain)


def test_many_calls_and_other_sizes_do_not_compile_again_and_again() -> None:
    model = tiny_moe("mixtral", experts="batched_mm")
    attached: Attached = attach(model, flat_table(), POLICIES[1])
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        for length in range(2, 12):
            compiled(ids(4, length))
            compiled(ids(4, length))
    assert graphs() <= 3  # for one size or two, then for any
    assert [record.batch for record in attached.records[::LAYERS]] == list(range(20))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of torch, at any break
def test_weights_that_need_a_gradient_are_routed_between_graphs() -> None:
    def gradient(call: Any) -> Tensor:
        model.zero_grad()
        call(input_ids=ids(), labels=ids(), use_cache=False).loss.backward()
        grad: Tensor = model.model.layers[0].mlp.gate.weight.grad
        return grad.clone()

    model = tiny_moe("mixtral", experts="batched_mm").train()
    attached = attach(model, flat_table())
    compiled = torch.compile(model, backend="aot_eager")
    plain = gradient(compiled)
    attached.policy = Skip(beta=0.5)
    want = gradient(model)
    assert not torch.allclose(want, plain)
    torch.testing.assert_close(gradient(compiled), want)
    assert attached.summary().calls == 3 * LAYERS


def test_observing_leaves_gradients_in_one_graph() -> None:
    model = tiny_moe("mixtral", experts="batched_mm").train()
    attached = attach(model, flat_table())
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(input_ids=ids(), labels=ids(), use_cache=False).loss.backward()
    assert graphs() == 1
    assert attached.summary().calls == LAYERS


@pytest.mark.parametrize("policy", POLICIES[:2])
def test_a_model_called_in_a_compiled_function_is_recorded_between_graphs(policy: Any) -> None:
    model = tiny_moe("mixtral", experts="batched_mm")
    with attach(model, flat_table(), policy) as eager, torch.no_grad():
        want = [model(ids()).logits, model(ids(3, 2)).logits]
    attached = attach(model, flat_table(), policy)
    torch._dynamo.reset()

    @torch.compile(backend="eager")
    def logits(given: Tensor) -> Tensor:
        out: Tensor = model(given + 0).logits
        return out

    with torch.no_grad():
        assert torch.equal(logits(ids()), want[0])
        assert torch.equal(logits(ids(3, 2)), want[1])
    assert attached.records == eager.records


def test_a_graph_goes_on_without_what_was_detached() -> None:
    model = tiny_moe("mixtral", experts="batched_mm")
    with torch.no_grad():
        plain = model(ids()).logits
        attached = attach(model, flat_table(), Skip(beta=0.9))
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert not torch.equal(compiled(ids()).logits, plain)
        attached.detach()
        assert torch.equal(compiled(ids()).logits, plain)
    assert attached.summary().calls == LAYERS


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles C++ for a CPU")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch
def test_inductor_compiles_it() -> None:
    model = tiny_moe("mixtral", experts="batched_mm")
    attached = attach(model, flat_table(), Marginal(lam=5.0, q=0.3))
    want = steps(model, model)
    got = steps(model, torch.compile(model, fullgraph=True))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    records = attached.records
    assert len(records) == 8 * LAYERS
    assert [r.active_experts for r in records[:8]] == [r.active_experts for r in records[8:]]
