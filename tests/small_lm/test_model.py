"""The model against definitions written out: causality, experts, cache, gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from costprof.core.errors import InputError
from costprof.runtime.small_lm.grouped import grouped_product
from costprof.runtime.small_lm.model import KeyValueCache, Routed, SmallLM, SmallLMConfig


def test_a_later_byte_changes_nothing_before_it(model: SmallLM, tokens: Tensor) -> None:
    changed = tokens.clone()
    changed[:, 13] = (changed[:, 13] + 1) % 256
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :13], after[:, :13], rtol=0, atol=1e-6)
    assert ((before[:, 13:] - after[:, 13:]).abs().amax(-1) > 1e-4).all()


def test_sequences_do_not_see_each_other(model: SmallLM, tokens: Tensor) -> None:
    torch.testing.assert_close(model(tokens)[2:3], model(tokens[2:3]), rtol=1e-5, atol=1e-5)


def test_positions_matter(model: SmallLM) -> None:
    one = torch.tensor([[7, 9, 7, 9, 5]])
    two = torch.tensor([[9, 7, 7, 9, 5]])
    assert (model(one)[:, -1] - model(two)[:, -1]).abs().max() > 1e-4


def test_a_cache_gives_what_the_whole_sequence_gives(model: SmallLM, tokens: Tensor) -> None:
    cache = KeyValueCache(pairs=[])
    parts = [model(part, cache=cache) for part in tokens.split([4, 1, 1, 15], dim=1)]
    assert cache.length == tokens.shape[1]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), rtol=1e-5, atol=1e-5)


def test_experts_are_the_weighted_sum_of_each_tokens_own(model: SmallLM) -> None:
    moe = model.blocks[0].moe
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 16, generator=generator, dtype=torch.float64)
    indices = torch.stack([torch.randperm(8, generator=generator)[:3] for _ in range(10)])
    weights = torch.rand(10, 3, generator=generator, dtype=torch.float64)
    used = torch.rand(10, 3, generator=generator) < 0.7
    wanted = torch.zeros(10, 16, dtype=torch.float64)
    for t, row in enumerate(x.flatten(0, 1)):
        for slot in range(3):
            if used[t, slot]:
                e = indices[t, slot]
                gate, up = (row @ moe.experts_in[e]).chunk(2)
                wanted[t] += weights[t, slot] * ((F.silu(gate) * up) @ moe.experts_out[e])
    routed = Routed(
        indices=indices.view(2, 5, 3), weights=weights.view(2, 5, 3), used=used.view(2, 5, 3)
    )
    torch.testing.assert_close(moe(x, routed), wanted.view(2, 5, 16))


def test_an_unused_expert_is_not_read(model: SmallLM, tokens: Tensor) -> None:
    def few(layer: int, logits: Tensor) -> Routed:
        shape = (*logits.shape[:2], 3)
        return Routed(
            indices=torch.tensor([1, 5, 6]).expand(shape),
            weights=torch.full(shape, 0.5),
            used=torch.tensor([True, False, True]).expand(shape),
        )

    before = model(tokens, few)
    with torch.no_grad():
        for block in model.blocks:
            for e in (0, 2, 3, 4, 5, 7):
                block.moe.experts_in[e] = torch.nan
                block.moe.experts_out[e] = torch.nan
    torch.testing.assert_close(model(tokens, few), before, rtol=0, atol=0)


def test_gradients_of_grouped_products_are_right() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(9, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(4, 4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    counts = [2, 0, 5, 1]  # one row belongs to nobody
    assert torch.autograd.gradcheck(lambda r, w: grouped_product(r, w, counts), (rows, weights))
    assert (grouped_product(rows, weights, counts)[8] == 0).all()


def test_wrong_sizes_and_tokens_are_refused(model: SmallLM, tokens: Tensor) -> None:
    for wrong in ({"d_model": 0}, {"d_model": 12, "n_heads": 4}, {"top_k": 65}, {"d_ff": 2.5}):
        with pytest.raises(InputError):
            SmallLMConfig(**wrong)  # type: ignore[arg-type]
    for bad in (tokens[0], tokens.int(), tokens.double()):
        with pytest.raises(InputError, match="cannot run"):
            model(bad)
