"""What a row gets instead of what it lost: which experts, and what they weigh."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from costprof.costmodel.table import CostTable
from costprof.routing import Fewer, Gate, Marginal, Prune, StaticSet, route
from costprof.routing.gate import select
from costprof.routing.kernels import marginal_cpu
from costprof.routing.reselection import expert_mask, replace

E = 16


@pytest.fixture(scope="module")
def table(make_table: Callable[..., CostTable]) -> CostTable:
    return make_table([(100.0, 1.0, 1.0)] * E, 4)


def test_of_equals_the_expert_of_the_lowest_number_is_taken() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randint(-2, 3, (200, E), generator=generator).float()
    logits[:20] = torch.where(logits[:20] > 0, logits[:20], -300.0)  # scores of 0
    plain = select(logits, Gate(top_k=4))
    lost = torch.rand(200, 4, generator=generator) < 0.5
    spare = torch.rand(E, generator=generator) < 0.7
    got = replace(plain, lost, spare)
    for t in range(200):
        own = plain.indices[t].tolist()
        left = [e for e in range(E) if spare[e] and e not in own]
        left.sort(key=lambda e: (-float(plain.scores[t, e]), e))
        expected = []
        for e, gone in zip(own, lost[t].tolist(), strict=True):
            if not gone:
                expected.append(e)
            elif left:
                expected.append(left.pop(0))
        assert got.indices[t][got.used[t]].tolist() == expected


@pytest.mark.parametrize("renormalise", [True, False])
def test_weights_sum_to_the_models_where_only_denormal_scores_are_left(
    table: CostTable, renormalise: bool
) -> None:
    """Beside the first expert a score is exp(-97), less than the least normal float."""
    logits = torch.full((3, E), -97.0)
    logits[:, 5] = 0.0
    logits[:, 7] = -96.0
    gate = Gate(top_k=4, renormalise=renormalise)
    plain = route(logits, table=table, gate=gate)
    assert 0.0 < select(logits, gate).scores[0, 0].item() < torch.finfo(torch.float32).tiny
    for policy in (StaticSet(kept=(0, 1, 7)), Prune(off=(5,))):
        got = route(logits, table=table, gate=gate, policy=policy)
        assert (got.indices[got.used] != 5).all()
        torch.testing.assert_close(got.weights.sum(-1), plain.weights.sum(-1))
        assert got.weights[0].max() > 2 * got.weights[0][got.used[0]].min()


def test_weights_of_ordinary_rows_are_quotients_of_scores(table: CostTable) -> None:
    logits = torch.randn(300, E, generator=torch.Generator().manual_seed(0)) * 5
    got = route(logits, table=table, gate=Gate(top_k=4), policy=Fewer(k=2))
    scores = torch.softmax(logits, -1).topk(4).values[:, :2]
    total = route(logits, table=table, gate=Gate(top_k=4)).weights.sum(-1, keepdim=True)
    assert torch.equal(got.weights[:, :2], scores / scores.sum(-1, keepdim=True) * total)


def test_c_weighs_denormal_scores_as_tensors_do(
    table: CostTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Expert 0 comes first by its bias alone; those a row keeps have next to no score."""
    logits = torch.full((2, E), -99.0)
    logits[:, 9] = 0.0
    logits[:, :4] = torch.tensor([-97.0, -98.0, -97.5, -97.2])
    bias = torch.zeros(E)
    bias[:4] = 2.0
    gate = Gate(top_k=4, bias=bias, renormalise=False)
    how = {"table": table, "gate": gate, "policy": Marginal(lam=50.0, q=0.0)}
    fast = route(logits, **how)
    monkeypatch.setattr(marginal_cpu, "available", lambda: False)
    slow = route(logits, **how)
    assert (~fast.used).any()
    # What is given up is a share of denormal scores: those of the slots that are empty.
    scores = torch.softmax(logits, -1)[:, :4].double()
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, fast.indices, True)
    lost = 1 - (scores * kept).sum(-1) / scores.sum(-1)
    torch.testing.assert_close(fast.gate_mass_lost, lost)
    assert torch.equal(fast.gate_mass_lost, slow.gate_mass_lost)
    total = route(logits, table=table, gate=gate).weights.sum(-1)
    torch.testing.assert_close(fast.weights.sum(-1), total, rtol=1e-6, atol=0)
    assert torch.equal(fast.weights, slow.weights)


def test_a_mask_is_kept_however_many_others_are_made() -> None:
    device = torch.device("cpu")
    kept = expert_mask((0, 3), E, device)
    for size in range(E, E + 200):
        expert_mask((0, 3), size + 1, device)
    assert expert_mask((0, 3), E, device) is kept
    assert kept.nonzero().flatten().tolist() == [0, 3]
