"""The MoE layer against a plain top-k layer written independently of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from costprof.core.errors import InputError
from costprof.core.expert import ExpertClass
from costprof.costmodel.table import CostTable
from costprof.routing import Gate, Marginal, Rows, TopK
from costprof.runtime import MoELayer
from costprof.runtime.experts import Expert
from costprof.runtime.kernels import torch_packed

E, K, D_MODEL = 8, 3, 64


def classes(kind: str) -> list[ExpertClass]:
    dense = ExpertClass(d_model=D_MODEL, d_ff=128, dtype="float32")
    narrow = ExpertClass(d_model=D_MODEL, d_ff=96, dtype="float32", activation="relu")
    packed = ExpertClass(d_model=D_MODEL, d_ff=128, dtype="float32", quantisation="int4")
    half = ExpertClass(d_model=D_MODEL, d_ff=128, dtype="bfloat16")
    return {"float32": [dense], "mixed": [dense, packed, narrow, packed], "bfloat16": [half]}[
        kind
    ] * (E // {"float32": 1, "mixed": 4, "bfloat16": 1}[kind])


def layer_of(table: CostTable, gate: Gate, seed: int = 0) -> MoELayer:
    generator = torch.Generator().manual_seed(seed)
    router = torch.randn(E, D_MODEL, generator=generator) / D_MODEL**0.5
    return MoELayer.random(router, gate=gate, table=table, generator=generator)


def plain_top_k(layer: MoELayer, x: Tensor, renormalise: bool) -> Tensor:
    """Softmax, top-k, and each expert on its tokens: nothing of routing or runtime is called."""
    scores = torch.softmax(F.linear(x, layer.gate_weight.to(x.dtype)).float(), dim=-1)
    weights, chosen = torch.topk(scores, K, dim=-1)
    if renormalise:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    out = torch.zeros_like(x)
    for e, expert in enumerate(layer.experts):
        token, slot = torch.where(chosen == e)
        if len(token) == 0:
            continue
        w1, w2 = dense_weights(expert)
        hidden = F.linear(x[token], w1)
        if expert.expert_class.activation == "swiglu":
            hidden = F.silu(hidden[:, : w2.shape[1]]) * hidden[:, w2.shape[1] :]
        else:
            hidden = torch.relu(hidden)
        out[token] += F.linear(hidden, w2) * weights[token, slot, None].to(x.dtype)
    return out


def dense_weights(expert: Expert) -> tuple[Tensor, Tensor]:
    if expert.expert_class.quantisation == "none":
        return expert.weights
    p1, s1, p2, s2 = expert.weights
    return torch_packed.unpack(p1, s1, p2, s2, torch.empty(0))


NEUTRAL = [TopK(), Marginal(), Marginal(lam=4.0, q=1.0)]


@pytest.mark.parametrize("kind", ["float32", "mixed", "bfloat16"])
@pytest.mark.parametrize("policy", NEUTRAL)
@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("tokens", [1, 7, 33])
def test_neutral_switches_give_plain_top_k_bit_for_bit(
    kind: str,
    policy: TopK | Marginal,
    renormalise: bool,
    tokens: int,
    make_table: Callable[..., CostTable],
) -> None:
    layer = layer_of(make_table(classes(kind), K), Gate(top_k=K, renormalise=renormalise))
    layer.policy = policy
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    x = torch.randn(tokens, D_MODEL, generator=torch.Generator().manual_seed(tokens)).to(dtype)
    with torch.inference_mode():
        assert torch.equal(layer(x), plain_top_k(layer, x, renormalise))


def test_a_policy_changes_the_output_and_runs_fewer_experts(
    make_table: Callable[..., CostTable],
) -> None:
    layer = layer_of(make_table(classes("mixed"), K), Gate(top_k=K))
    x = torch.randn(4, D_MODEL, generator=torch.Generator().manual_seed(1))
    plain = layer.run(x)
    layer.policy = Marginal(lam=5.0, q=0.3)
    ran = []
    for number, expert in enumerate(layer.experts):
        expert.register_forward_hook(lambda *_, number=number: ran.append(number))
    pruned = layer.run(x)
    counts = pruned.assignment.counts
    assert ran == counts.nonzero().flatten().tolist()
    assert counts.count_nonzero() < plain.assignment.counts.count_nonzero()
    assert not torch.equal(pruned.hidden, plain.hidden)
    invariant = layer.run(x, batch_invariant=True)
    assert torch.equal(invariant.hidden, plain.hidden)


def test_an_expert_nobody_chose_is_never_read(make_table: Callable[..., CostTable]) -> None:
    layer = layer_of(make_table(classes("float32"), K), Gate(top_k=K))
    x = torch.randn(2, D_MODEL, generator=torch.Generator().manual_seed(1))
    counts = layer.run(x).assignment.counts
    for expert, count in zip(layer.experts, counts.tolist(), strict=True):
        if count == 0:
            expert.weight_0.fill_(float("nan"))
    assert layer(x).isfinite().all()


def test_padding_rows_come_out_zero_and_change_no_other_row(
    make_table: Callable[..., CostTable],
) -> None:
    layer = layer_of(make_table(classes("float32"), K), Gate(top_k=K))
    layer.policy = Marginal(lam=5.0, q=0.3)
    x = torch.randn(4, D_MODEL, generator=torch.Generator().manual_seed(1))
    padded = torch.cat([x, torch.full((2, D_MODEL), 30.0)])
    rows = Rows.decode(6)
    rows.real[4:] = False
    out = layer.run(padded, rows=rows)
    alone = layer.run(x)
    assert torch.equal(out.assignment.counts, alone.assignment.counts)
    assert not out.hidden[4:].any()
    assert torch.allclose(out.hidden[:4], alone.hidden, rtol=1e-5, atol=1e-6)


def test_a_logit_offset_moves_the_choice_but_not_the_reported_logits(
    make_table: Callable[..., CostTable],
) -> None:
    layer = layer_of(make_table(classes("float32"), K), Gate(top_k=K))
    x = torch.randn(3, D_MODEL)
    offset = torch.zeros(E)
    offset[5] = 100.0
    moved = layer.run(x, logit_offset=offset)
    assert (moved.assignment.indices[:, 0] == 5).all()
    assert torch.equal(moved.logits, layer.run(x).logits)


def test_no_tokens_give_no_rows(make_table: Callable[..., CostTable]) -> None:
    layer = layer_of(make_table(classes("float32"), K), Gate(top_k=K))
    assert layer(torch.empty(0, D_MODEL)).shape == (0, D_MODEL)


def test_the_state_dict_restores_a_layer(make_table: Callable[..., CostTable]) -> None:
    table = make_table(classes("mixed"), K)
    first, second = (layer_of(table, Gate(top_k=K), seed) for seed in (0, 1))
    x = torch.randn(3, D_MODEL)
    assert not torch.equal(first(x), second(x))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))


def test_layers_that_do_not_fit_the_table_are_refused(
    make_table: Callable[..., CostTable],
) -> None:
    table = make_table(classes("float32"), K)
    layer = layer_of(table, Gate(top_k=K))
    experts = list(layer.experts)
    gate = Gate(top_k=K)
    with pytest.raises(InputError, match=r"shape \[8, 32\]; .*= \[8, 64\]"):
        MoELayer(torch.zeros(E, 32), experts, gate=gate, table=table)
    with pytest.raises(InputError, match=r"7 experts, 8 in the table; .*; use the table"):
        MoELayer(layer.gate_weight, experts[:7], gate=gate, table=table)
    other = layer_of(make_table(classes("mixed"), K), gate).experts[1]
    with pytest.raises(InputError, match=r"expert 3 is of another class"):
        MoELayer(layer.gate_weight, [*experts[:3], other, *experts[4:]], gate=gate, table=table)
    with pytest.raises(InputError, match=r"hidden states have shape \[2, 5\]; .*\[tokens, 64\]"):
        layer(torch.zeros(2, 5))


def test_experts_that_cannot_be_built_are_refused() -> None:
    attention = ExpertClass(
        block="attention", d_model=64, n_heads=2, n_kv_heads=1, head_dim=8, context_len=4
    )
    with pytest.raises(InputError, match=r"block attention .*; it cannot be run; use a feed-"):
        Expert.random(attention, torch.Generator())
    blocks = ExpertClass(d_model=64, d_ff=32, quantisation="fp8_block")
    with pytest.raises(InputError, match="fp8_block can be priced but not run"):
        Expert.random(blocks, torch.Generator())
    expert = ExpertClass(d_model=64, d_ff=32)
    with pytest.raises(InputError, match=r"w1 has shape \[32, 64\]; .*shape \[64, 64\]"):
        Expert(expert, torch.zeros(32, 64), torch.zeros(64, 32))
