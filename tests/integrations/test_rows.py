"""Which rows are padding, prompt or decode: by masks, caches and packed batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_moes import FAMILIES, LAYERS, N_EXPERTS, flat_table, tiny_moe
from torch import Tensor
from watching import Watch, cache_name

from costprof.routing import Marginal, Skip
from costprof.runtime.integrations import attach
from costprof.runtime.integrations.batch import describe

PROMPT, CACHE = 6, 12
STRONG = Marginal(lam=5.0, q=0.3)


def ids(batch: int = 4, length: int = PROMPT) -> Tensor:
    return torch.randint(3, 64, (batch, length), generator=torch.Generator().manual_seed(7))


def cache_of(model: Any, kind: str) -> Any:
    import transformers

    if kind == "static":
        return transformers.StaticCache(config=model.config, max_cache_len=CACHE)
    return transformers.DynamicCache(config=model.config)


def padded(width: int) -> Tensor:
    """The mask [4, width] of four prompts, the first two padded on the left."""
    mask = torch.zeros(4, width, dtype=torch.int64)
    mask[:, :PROMPT] = 1
    mask[0, :3] = 0
    mask[1, :1] = 0
    return mask


@torch.no_grad()
def steps(model: Any, *, kind: str, width: int, decoded: int = 2) -> list[Tensor]:
    """Return logits [4, Q, V] of a prompt and `decoded` steps; the mask is `width` columns or more.

    So it is as wide as the cache from the start, or grows with the tokens.
    """
    cache, given, every = cache_of(model, kind), ids(), []
    for past in (0, *range(PROMPT, PROMPT + decoded)):
        end = past + given.shape[1]
        mask = padded(max(width, end))
        mask[:, PROMPT:end] = 1
        position = (mask.cumsum(-1) - 1).clamp_min(0)[:, past:end]
        named = {cache_name(model): cache}
        out = model(input_ids=given, attention_mask=mask, position_ids=position, **named)
        every.append(out.logits)
        given = ids(4, 1) + past % 3
    return every


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(family: str) -> Any:
    return tiny_moe(family)


@pytest.fixture(params=["static", "dynamic"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("width", [0, CACHE])
def test_padding_and_decode_are_told_with_any_cache_and_mask(
    model: Any, kind: str, width: int
) -> None:
    watch = Watch()
    with attach(model, flat_table(), watch) as attached:
        steps(model, kind=kind, width=width)
    prompt, second, third = watch.told[0], watch.told[LAYERS], watch.told[2 * LAYERS]
    assert torch.equal(prompt.real.view(4, PROMPT), padded(PROMPT).bool())
    assert prompt.position.view(4, PROMPT)[0].tolist() == [0, 0, 0, 0, 1, 2]
    assert prompt.is_prefill.all()
    assert second.real.all()
    assert second.lone_decode().all()
    assert second.position.tolist() == [3, 5, 6, 6]
    assert third.position.tolist() == [4, 6, 7, 7]
    assert [record.is_prefill for record in attached.records[::LAYERS]] == [True, False, False]


@pytest.mark.parametrize("width", [0, CACHE])
def test_policies_change_no_more_with_a_mask_as_wide_as_the_cache(
    model: Any, kind: str, width: int
) -> None:
    plain = steps(model, kind=kind, width=width)
    real = padded(PROMPT).bool()
    with attach(model, flat_table(), Skip(beta=1e-30)):  # drops nothing
        kept = steps(model, kind=kind, width=width)
    torch.testing.assert_close(kept[0][real], plain[0][real], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kept[1:], plain[1:], rtol=1e-5, atol=1e-5)
    with attach(model, flat_table(), STRONG) as attached:
        changed = steps(model, kind=kind, width=width)
    torch.testing.assert_close(changed[0][real], plain[0][real], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(changed[1], plain[1], atol=1e-3)
    assert attached.summary(is_prefill=True).gate_mass_lost == 0.0
    assert 0.0 < attached.summary(is_prefill=False).gate_mass_lost <= 1.0 - STRONG.q


def test_one_token_with_a_fresh_static_cache_is_a_prompt(model: Any) -> None:
    cache = cache_of(model, "static")
    with torch.no_grad():
        model(ids(), **{cache_name(model): cache})
        cache.reset()
        with attach(model, flat_table(), STRONG) as attached:
            for _ in range(2):
                model(ids(4, 1), **{cache_name(model): cache})
    assert [record.is_prefill for record in attached.records[::LAYERS]] == [True, False]
    assert attached.summary(is_prefill=True).gate_mass_lost == 0.0


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_generate_with_a_static_cache_tells_padding(family: str, attention: str) -> None:
    model = tiny_moe(family)
    if attention == "sdpa" and family == "gpt_oss":
        pytest.skip("gpt-oss has sinks, which sdpa does not")
    model.set_attn_implementation(attention)
    watch = Watch()
    attach(model, flat_table(), watch)
    model.generate(
        ids(),
        attention_mask=padded(PROMPT),
        max_new_tokens=2,
        min_new_tokens=2,
        cache_implementation="static",
    )
    assert torch.equal(watch.told[0].real.view(4, PROMPT), padded(PROMPT).bool())
    assert watch.told[LAYERS].lone_decode().all()


class CountsOnDevice:
    """A cache whose length must not be read by the host."""

    def get_seq_length(self) -> Tensor:
        return torch.zeros((), dtype=torch.int64, device="meta")


@pytest.mark.parametrize("mask", [None, torch.ones(2, CACHE, device="meta")])
def test_the_length_of_a_static_cache_is_not_waited_for(mask: Tensor | None) -> None:
    tokens = torch.zeros(2, 1, dtype=torch.int64, device="meta")
    batch = describe({"input_ids": tokens, "attention_mask": mask, "cache": CountsOnDevice()})
    assert batch is not None
    assert batch.rows.real.shape == (2,)


def test_tokens_beyond_the_mask_are_real() -> None:
    class Cache:
        def get_seq_length(self) -> int:
            return 4

    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    batch = describe({"input_ids": ids(2, 1), "attention_mask": mask, "cache": Cache()})
    assert batch is not None
    assert batch.rows.real.tolist() == [True, True]
    assert batch.rows.position.tolist() == [3, 4]


def test_rows_of_a_packed_batch() -> None:
    batch = describe(
        {
            "input_ids": ids(1, 7),
            "position_ids": torch.tensor([[9, 0, 1, 2, 4, 0, 0]]),
            "cu_seq_lens_q": torch.tensor([0, 1, 4, 5, 5, 5], dtype=torch.int32),
        }
    )
    assert batch is not None
    assert len(batch) == 7
    rows = batch.rows
    assert rows.real.tolist() == [True] * 5 + [False] * 2
    assert rows.sequence.tolist()[:5] == [0, 1, 1, 1, 2]
    assert rows.is_prefill.tolist()[:5] == [False, True, True, True, False]
    assert rows.lone_decode().tolist() == [True, False, False, False, True, False, False]
    assert bool(batch.is_prefill)


@pytest.mark.parametrize(
    "arguments",
    [
        {"position_ids": torch.zeros(2, 4, dtype=torch.int64)},
        {"cu_seq_lens_q": torch.zeros(1, dtype=torch.int32)},
    ],
)
def test_packed_batches_that_do_not_fit_tell_nothing(arguments: Any) -> None:
    packed = {
        "input_ids": ids(1, 4),
        "position_ids": torch.arange(4).unsqueeze(0),
        "cu_seq_lens_q": torch.tensor([0, 4]),
    }
    assert describe(packed) is not None
    assert describe(packed | arguments) is None


def test_continuous_batching_is_recorded_and_routed_as_decode() -> None:
    import transformers

    model = tiny_moe("mixtral")
    attached = attach(model, flat_table(), STRONG)
    model.set_attn_implementation("paged|eager")
    done = model.generate_batch(
        inputs=[[5, 6, 7], [8, 9, 10, 11]],
        generation_config=transformers.GenerationConfig(
            max_new_tokens=4, do_sample=False, eos_token_id=2, pad_token_id=0
        ),
        continuous_batching_config=transformers.ContinuousBatchingConfig(
            num_blocks=16, max_batch_tokens=16
        ),
    )
    assert len(done) == 2
    prompts, decode = attached.summary(is_prefill=True), attached.summary(is_prefill=False)
    assert prompts.gate_mass_lost == 0.0
    assert decode.calls == 3 * LAYERS
    assert decode.active_experts < decode.plain_active_experts <= N_EXPERTS
