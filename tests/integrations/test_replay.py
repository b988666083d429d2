"""Gradient checkpointing: layers that run again do what they did the first time."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from tiny_moes import LAYERS, flat_table, tiny_moe
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from costprof.core.errors import InputError
from costprof.routing import CachePrior, Fewer, Marginal, Prune, Skip, StatisticalBalance
from costprof.runtime.integrations import attach
from costprof.runtime.integrations.calls import Call

POLICIES = (
    None,
    Skip(beta=0.5),
    Fewer(k=2),
    Prune(share=0.5),
    CachePrior(lam=2.0),
    StatisticalBalance(rate=0.1, max_bias=1.0),
    Marginal(lam=5.0, q=0.3, prefill=True),
)


def batches(number: int = 2) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 64, (number, 4, 6), generator=generator)
    mask = torch.ones(4, 6, dtype=torch.int64)
    mask[0, :3] = 0
    return [{"input_ids": each, "labels": each, "attention_mask": mask} for each in ids]


def training(use_reentrant: bool | None) -> Any:
    model = tiny_moe("mixtral").train()
    if use_reentrant is not None:
        enable = getattr(model, "activation_checkpointing_enable", None)
        enable = enable or model.gradient_checkpointing_enable  # its name until 5.23
        enable({"use_reentrant": use_reentrant})
    return model


def loss_of(model: Any, batch: dict[str, Tensor]) -> Tensor:
    loss: Tensor = model(**batch, use_cache=False).loss
    return loss


def gradients(model: Any) -> dict[str, Tensor]:
    every = {name: each.grad for name, each in model.named_parameters()}
    return {name: grad for name, grad in every.items() if grad is not None}


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
def test_gradients_are_those_without_checkpointing(policy: Any, use_reentrant: bool) -> None:
    def run(model: Any) -> tuple[dict[str, Tensor], int]:
        attached = attach(model, flat_table(), policy)
        for batch in batches():
            loss_of(model, batch).backward()
        return gradients(model), attached.summary().calls

    (plain, calls), (again, calls_again) = run(training(None)), run(training(use_reentrant))
    assert calls == calls_again == 2 * LAYERS
    torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_calls_are_told_apart_whatever_the_order_of_their_gradients(use_reentrant: bool) -> None:
    policy = StatisticalBalance(rate=0.1, max_bias=1.0)

    def run(model: Any) -> dict[str, Tensor]:
        attached = attach(model, flat_table(), policy)
        first, second = batches()
        losses = [loss_of(model, each) for each in (first, second, first)]
        losses[2].backward()
        attached.policy = None  # what was decided before stays decided
        (losses[0] + 2 * losses[1]).backward()
        return gradients(model)

    plain, again = run(training(None)), run(training(use_reentrant))
    torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_call_before_the_policy_stays_as_it_was(use_reentrant: bool) -> None:
    def run(model: Any) -> dict[str, Tensor]:
        attached = attach(model, flat_table())
        labels = batches()[0]["labels"]
        given = model.get_input_embeddings()(labels)
        first = model(inputs_embeds=given, use_cache=False, output_hidden_states=True)
        attached.policy = Skip(beta=0.5)
        hidden = first.hidden_states[-1]
        model(inputs_embeds=hidden, labels=labels, use_cache=False).loss.backward()
        return gradients(model)

    plain, again = run(training(None)), run(training(use_reentrant))
    torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-6)


def test_a_call_is_kept_as_long_as_its_graph() -> None:
    def living() -> int:
        gc.collect()
        return sum(type(each) is Call for each in gc.get_objects())

    model, before = training(True), living()
    attach(model, flat_table(), Skip(beta=0.5))
    loss = loss_of(model, batches()[0])
    assert living() == before + 1
    loss.backward()
    del loss
    assert living() == before
    with torch.no_grad():
        loss_of(model, batches()[0])
    assert living() == before


def test_a_whole_model_run_again_is_refused_where_its_first_run_is_not_known() -> None:
    model, batch = training(None), batches()[0]
    hidden = model.get_input_embeddings()(batch["input_ids"])

    def run(hidden: Tensor, use_reentrant: bool) -> Tensor:
        def loss(x: Tensor) -> Tensor:
            out: Tensor = model(inputs_embeds=x, labels=batch["labels"], use_cache=False).loss
            return out

        done: Tensor = checkpoint(loss, hidden, use_reentrant=use_reentrant)
        return done

    attached = attach(model, flat_table())
    run(hidden, True).backward()
    assert attached.summary().calls == LAYERS
    attached.policy = Skip(beta=0.5)
    with pytest.raises(InputError, match="the whole model runs again in a backward pass"):
        run(hidden.detach().requires_grad_(), True).backward()
    run(hidden.detach().requires_grad_(), False).backward()
