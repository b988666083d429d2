"""Every family, attached: bitwise the same where nothing is traded, cheaper where it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from expert_reads import mean_reads
from tiny_moes import FAMILIES, LAYERS, N_EXPERTS, TOP_K, flat_table, tiny_moe
from torch import Tensor

from costprof.routing import Marginal, TopK
from costprof.routing.gate import select
from costprof.runtime.integrations import attach, detach
from costprof.runtime.integrations.families import find_routers, gate_of

STRONG = Marginal(lam=5.0, q=0.3)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(family: str) -> Any:
    return tiny_moe(family)


def prompts(batch: int = 5, length: int = 7) -> dict[str, Tensor]:
    """Prompts of different lengths, padded on the left."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 64, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    mask[3, :2] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}


def generate(model: Any, tokens: int = 6) -> Tensor:
    """Return the logits of `tokens` greedy steps, [steps, B, V], which end with no sequence."""
    done = model.generate(
        **prompts(),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(done.logits)


@torch.no_grad()
def forward(model: Any) -> Any:
    return model(**prompts(), output_router_logits=True)


@pytest.mark.parametrize("policy", [None, TopK(), Marginal(lam=0.0)])
def test_neutral_is_bitwise_the_untouched_model(model: Any, policy: Any) -> None:
    plain, steps = forward(model), generate(model)
    attach(model, flat_table(), policy)
    seen = forward(model)
    assert torch.equal(seen.logits, plain.logits)
    assert torch.equal(generate(model), steps)


def test_router_logits_are_still_captured(model: Any) -> None:
    plain = forward(model)
    attach(model, flat_table(), STRONG)
    seen = forward(model)
    assert len(seen.router_logits) == len(plain.router_logits) == LAYERS
    assert torch.equal(seen.router_logits[0], plain.router_logits[0])


def test_with_a_policy_generation_reads_fewer_experts(model: Any) -> None:
    before = mean_reads(model, lambda: generate(model))
    attached = attach(model, flat_table(), STRONG)
    steps: list[Tensor] = []
    after = mean_reads(model, lambda: steps.append(generate(model)))
    assert after < 0.8 * before
    assert steps[0].isfinite().all()
    summary = attached.summary()
    assert summary.plain_active_experts > summary.active_experts == pytest.approx(after)
    assert summary.latency_us < summary.plain_latency_us


def test_prompts_are_left_alone(model: Any) -> None:
    plain = forward(model).logits
    attached = attach(model, flat_table(), STRONG)
    # Padding rows leave their experts' batches, whose products may then round differently.
    real = prompts()["attention_mask"].bool()
    torch.testing.assert_close(forward(model).logits[real], plain[real], rtol=1e-5, atol=1e-5)
    assert all(record.is_prefill for record in attached.records)
    assert attached.summary().gate_mass_lost == 0.0


def test_decode_rows_keep_what_the_policy_promises(model: Any) -> None:
    attached = attach(model, flat_table(), STRONG)
    generate(model)
    decode = [record for record in attached.records if not record.is_prefill]
    assert len(decode) == 5 * LAYERS
    assert all(record.tokens == 5 for record in decode)
    assert all(0.0 <= record.gate_mass_lost <= 1.0 - STRONG.q for record in decode)
    assert any(record.gate_mass_lost > 0.0 for record in decode)


def test_detach_restores_the_very_modules(model: Any) -> None:
    modules = {name: (id(each), type(each)) for name, each in model.named_modules()}
    parameters = {name: id(each) for name, each in model.named_parameters()}
    plain, keys = generate(model), list(model.state_dict())
    attach(model, flat_table(), STRONG)
    assert list(model.state_dict()) == keys
    assert not torch.equal(generate(model), plain)
    detach(model)
    assert torch.equal(generate(model), plain)
    assert {name: (id(each), type(each)) for name, each in model.named_modules()} == modules
    assert {name: id(each) for name, each in model.named_parameters()} == parameters
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gate_is_the_familys(family: str, dtype: torch.dtype) -> None:
    model = tiny_moe(family, dtype=dtype)
    router = next(iter(find_routers(model, None).values()))
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(5)).to(dtype)
    with torch.no_grad():
        logits, weights, indices = router(x)
    plain = select(logits, gate_of(router))
    own, order = indices.sort(dim=-1)
    ours, our_order = plain.indices.sort(dim=-1)
    same = (own == ours).all(dim=-1)
    assert same.float().mean() > (0.99 if dtype is torch.float32 else 0.8)  # bfloat16 has ties
    torch.testing.assert_close(
        weights.gather(-1, order)[same].float(),
        plain.weights.gather(-1, our_order)[same],
        rtol=4 * torch.finfo(weights.dtype).eps,
        atol=1e-6,
    )


def test_bfloat16_models_run_with_a_policy(family: str) -> None:
    model = tiny_moe(family, dtype=torch.bfloat16)
    attached = attach(model, flat_table(), STRONG)
    assert generate(model).isfinite().all()
    assert attached.summary(is_prefill=False).active_experts < 0.8 * (
        attached.summary(is_prefill=False).plain_active_experts
    )


def test_records_price_what_the_experts_get(model: Any, family: str) -> None:
    given: list[Tensor] = []

    def note(module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        indices = args[1] if len(args) > 1 else kwargs["router_indices"]
        given.append(torch.bincount(indices.flatten(), minlength=N_EXPERTS))

    for name, each in model.named_modules():
        if name.endswith(".experts"):
            each.register_forward_pre_hook(note, with_kwargs=True)
    table = flat_table()
    attached = attach(model, table, STRONG)
    generate(model)
    assert len(attached.records) == len(given) == 6 * LAYERS
    for record, counts in zip(attached.records, given, strict=True):
        assert record.active_experts == int((counts > 0).sum())
        assert record.latency_us == pytest.approx(float(table.layer_cost(counts).latency_us))
        assert record.energy_mj == pytest.approx(float(table.layer_cost(counts).energy_mj))
        assert record.plain_active_experts <= min(N_EXPERTS, record.tokens * TOP_K)
