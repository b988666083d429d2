"""The Triton decision, interpreted on a CPU or run on a GPU, is the one that C makes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from costprof.costmodel.table import CostTable
from costprof.routing import Gate, Rows
from costprof.routing.gate import select
from costprof.routing.kernels import marginal_cpu, marginal_gpu
from costprof.routing.kernels.terms import Terms
from costprof.routing.pruning import ONE

E = 24
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module")
def table(make_table: Callable[..., CostTable]) -> CostTable:
    return make_table([(100.0, 1.0, 2.0)] * E, 4)  # of several classes tensors decide


@pytest.mark.parametrize("tokens", [1, 7, 19])
@pytest.mark.parametrize(
    ("lam", "budget", "q", "energy"),
    [(0.5, 1.0, 0.7, 0.0), (8.0, 1.0, 0.0, 1.0), (0.0, 0.5, 0.5, 0.5), (0.0, 1.0, 0.5, 0.0)],
)
@pytest.mark.parametrize("described", [False, True])
def test_it_decides_as_c_does(
    table: CostTable,
    tokens: int,
    lam: float,
    budget: float,
    q: float,
    energy: float,
    described: bool,
) -> None:
    generator = torch.Generator().manual_seed(tokens)
    logits = torch.randn(tokens, E, generator=generator) * 2
    plain = select(logits, Gate(top_k=4))
    terms = Terms(1.0 - energy, energy, lam, budget, math.floor((1.0 - q) * ONE))
    real = changeable = None
    if described:
        rows = Rows.decode(tokens)
        real = rows.real & (torch.rand(tokens, generator=generator) < 0.7)
        changeable = real & (torch.rand(tokens, generator=generator) < 0.7)
    wanted = marginal_cpu.decide(
        plain, table.lookup(torch.device("cpu")), terms, real=real, changeable=changeable
    )
    there = select(logits.to(DEVICE), Gate(top_k=4))
    got = marginal_gpu.decide(
        there,
        table.lookup(there.scores.device),
        terms,
        real=None if real is None else real.to(DEVICE),
        changeable=None if changeable is None else changeable.to(DEVICE),
    )
    whose = torch.ones(tokens, dtype=torch.bool) if real is None else real
    assert torch.equal(got.indices.cpu()[whose], wanted.indices[whose])
    assert torch.equal(got.used.cpu()[whose], wanted.used[whose])
    assert got.counts is not None
    assert wanted.counts is not None
    assert torch.equal(got.counts.cpu(), wanted.counts)
    assert torch.allclose(got.weights.cpu()[whose], wanted.weights[whose], rtol=1e-6, atol=0)
    assert torch.equal(got.gate_mass_lost.cpu()[whose], wanted.gate_mass_lost[whose])


def test_weights_sum_to_the_models_where_only_denormal_scores_are_left(table: CostTable) -> None:
    logits = torch.full((3, E), -99.0)
    logits[:, 9] = 0.0
    logits[:, :4] = torch.tensor([-97.0, -98.0, -97.5, -97.2])
    bias = torch.zeros(E)
    bias[:4] = 2.0
    gate = Gate(top_k=4, bias=bias.to(DEVICE), renormalise=False)
    plain = select(logits.to(DEVICE), gate)
    got = marginal_gpu.decide(
        plain,
        table.lookup(plain.scores.device),
        Terms(1.0, 0.0, 50.0, 1.0, ONE),
        real=None,
        changeable=None,
    )
    assert not got.used.all()
    torch.testing.assert_close(got.weights.sum(-1), plain.weights.sum(-1), rtol=1e-6, atol=0)
