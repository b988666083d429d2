"""The evaluation of all positions at once against decoding step by step, and its quantities."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from costprof.core.errors import InputError
from costprof.costmodel.table import CostTable
from costprof.routing import Marginal, Rows, SystemState, TopK
from costprof.routing.contract import Gate, Policy, Selection
from costprof.runtime.small_lm.evaluate import DecodeRouter, evaluate
from costprof.runtime.small_lm.model import KeyValueCache, Routed, SmallLM

MARGINAL = Marginal(lam=0.8, q=0.4)


@dataclass(frozen=True)
class LastSeen:
    """Gives every row the first expert of the last batch's first row: depends on history."""

    neutral: bool = False

    def choose(
        self,
        plain: Selection,
        *,
        table: CostTable,
        state: SystemState,
        rows: Rows,
        gate: Gate,
        history: Any,
    ) -> tuple[Selection, Any]:
        seen = history or [0, []]
        expert, positions = seen[0], [*seen[1], int(rows.position[0])]
        indices = plain.indices.clone()
        free = (indices != expert).all(-1)
        indices[free, -1] = expert
        chosen = dataclasses.replace(
            plain, indices=indices, weights=plain.scores.gather(-1, indices)
        )
        return chosen, [int(plain.indices[0, 0]), positions]


def step_by_step(
    model: SmallLM, text: Tensor, table: CostTable, policy: Policy, top_k: int | None
) -> tuple[Tensor, DecodeRouter]:
    """Bits [B, T] of decoding one position after the other from a cache."""
    router = DecodeRouter(model, table=table, policy=policy, top_k=top_k)
    cache = KeyValueCache(pairs=[])
    bits = []
    for t in range(text.shape[1] - 1):
        logits = model(text[:, t : t + 1], router, cache)[:, 0]
        bits.append(F.cross_entropy(logits, text[:, t + 1], reduction="none") / math.log(2))
    return torch.stack(bits, dim=1), router


@pytest.mark.parametrize("policy", [TopK(), MARGINAL, LastSeen()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("top_k", [None, 2])
def test_all_at_once_is_step_by_step(
    model: SmallLM,
    tokens: Tensor,
    make_table: Callable[..., CostTable],
    policy: Policy,
    top_k: int | None,
) -> None:
    table = make_table()
    found = evaluate(model, tokens, batch=3, table=table, policy=policy, top_k=top_k)
    for number, part in enumerate(tokens.split(3)):
        bits, router = step_by_step(model, part, table, policy, top_k)
        torch.testing.assert_close(
            found.bits_per_byte[3 * number : 3 * number + 3],
            bits.double().mean(1),
            rtol=1e-5,
            atol=1e-5,
        )
        counts = torch.stack([torch.cat(each) for each in router.counts])
        assert counts.shape == (2, 20, 8)
        assert found.active_experts[number] == (counts > 0).sum(-1).double().mean()
        lost = torch.stack([torch.cat(each, dim=1) for each in router.lost])
        torch.testing.assert_close(found.gate_mass_lost[number], lost.mean())


def test_a_policy_that_prunes_changes_bits_and_reads_less(
    model: SmallLM, tokens: Tensor, make_table: Callable[..., CostTable]
) -> None:
    table = make_table()
    plain = evaluate(model, tokens, batch=6, table=table)
    pruned = evaluate(model, tokens, batch=6, table=table, policy=MARGINAL)
    assert pruned.active_experts < plain.active_experts - 0.5
    assert pruned.predicted_us < plain.predicted_us
    assert pruned.gate_mass_lost > 0
    assert plain.gate_mass_lost == 0
    assert (pruned.bits_per_byte != plain.bits_per_byte).any()


def test_a_policy_is_told_each_position_once_and_in_order(
    model: SmallLM, tokens: Tensor, make_table: Callable[..., CostTable]
) -> None:
    router = DecodeRouter(model, table=make_table(), policy=LastSeen())
    cache = KeyValueCache(pairs=[])
    for part in tokens.split([5, 1, 15], dim=1):
        model(part, router, cache)
    for layer in range(2):
        assert router._history[layer][1] == list(range(21))


def test_quantities_of_plain_routing_are_those_counted_by_hand(
    model: SmallLM, tokens: Tensor, make_table: Callable[..., CostTable]
) -> None:
    table = make_table()
    found = evaluate(model, tokens[:4], batch=4, table=table, top_k=2)
    seen: list[Tensor] = []

    def record(layer: int, logits: Tensor) -> Routed:
        weights, indices = torch.softmax(logits.float(), -1).topk(2)
        seen.append(indices)
        return Routed(indices=indices, weights=weights / weights.sum(-1, keepdim=True))

    with torch.inference_mode():
        logits = model(tokens[:4, :-1], record)
    nats = F.cross_entropy(logits.flatten(0, 1), tokens[:4, 1:].flatten(), reduction="none")
    wanted_bits = nats.view(4, 20).double().mean(1) / math.log(2)
    torch.testing.assert_close(found.bits_per_byte, wanted_bits, rtol=1e-5, atol=1e-5)
    active, padded, us, calls = 0, 0, 0.0, 0
    for indices in seen:
        for t in range(20):
            counts = torch.bincount(indices[:, t].flatten(), minlength=8).tolist()
            active += sum(c > 0 for c in counts)
            padded += sum(16 * math.ceil(c / 16) for c in counts)
            us += sum(100.0 + c for c in counts if c)
            calls += 1
    assert calls == 40
    assert found.active_experts.tolist() == [active / calls]
    assert found.weight_bytes.tolist() == [active / calls * 3 * 16 * 8 * 2]
    assert found.rows.tolist() == [8.0]
    assert found.padded_rows.tolist() == [padded / calls]
    assert found.predicted_us.tolist() == pytest.approx([us / calls], rel=1e-6)
    assert found.predicted_mj.tolist() == pytest.approx([2 * us / calls], rel=1e-6)
    assert 0.05 < found.gate_mass_lost < 0.5


def test_it_repeats_exactly_and_batches_are_separate(
    model: SmallLM, tokens: Tensor, make_table: Callable[..., CostTable]
) -> None:
    table = make_table()
    whole = evaluate(model, tokens, batch=2, table=table, policy=MARGINAL)
    again = evaluate(model, tokens, batch=2, table=table, policy=MARGINAL)
    last = evaluate(model, tokens[4:], batch=2, table=table, policy=MARGINAL)
    for field in dataclasses.fields(whole):
        value = getattr(whole, field.name)
        assert torch.equal(value, getattr(again, field.name))
        assert torch.equal(value[-len(getattr(last, field.name)) :], getattr(last, field.name))
    assert whole.bits_per_byte.shape == (6,)
    assert whole.predicted_us.shape == (3,)


def test_what_does_not_fit_is_refused(
    model: SmallLM, tokens: Tensor, make_table: Callable[..., CostTable]
) -> None:
    for batch in (0, 4, 7):
        with pytest.raises(InputError, match="multiple"):
            evaluate(model, tokens, batch=batch, table=make_table())
    with pytest.raises(InputError, match="cannot be priced"):
        evaluate(model, tokens, batch=2, table=make_table(16))
