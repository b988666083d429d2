"""The compiled decision is the one that tensors make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_batches import BALANCED, GATES, OBJECTIVES

from costprof.costmodel.table import CostTable
from costprof.routing import Gate, Marginal, Objective, Rows, route
from costprof.routing.contract import Assignment
from costprof.routing.gate import select
from costprof.routing.kernels import compiled, marginal_cpu
from costprof.routing.kernels.terms import Terms
from costprof.routing.pruning import ONE

E = 16
# The first expert of a row may have hardly any share of it.
BIASED = Gate(top_k=4, score="sigmoid", bias=torch.linspace(-5.0, 5.0, E))


@pytest.fixture(scope="module")
def tables(make_table: Callable[..., CostTable]) -> list[CostTable]:
    return [
        make_table([(100.0, 1.0, 2.0)] * E, 4),
        make_table([(100.0, 1.0, 2.0), (20.0, 6.0, 3.0)] * (E // 2), 4),
    ]


def by_tensors(logits: torch.Tensor, **how: object) -> Assignment:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(marginal_cpu, "available", lambda: False)
        return route(logits, **how)


def test_this_machine_compiles_it() -> None:
    assert compiled.library("marginal.c") is not None


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    tokens=st.integers(0, 70),
    lam=st.sampled_from([0.0, 0.1, 0.5, 5.0]),
    budget=st.sampled_from([1.0, 0.8, 0.3]),
    q=st.sampled_from([0.0, 0.5, 0.7, 0.95]),
    objective=st.sampled_from(OBJECTIVES + BALANCED),
    described=st.booleans(),
    gate=st.sampled_from([*GATES, BIASED]),
    which=st.integers(0, 1),
    steps=st.sampled_from([None, 1.0, 0.25]),
    width=st.sampled_from([2.0, 2.0, 60.0]),
)
def test_it_decides_as_tensors_do(
    seed: int,
    tokens: int,
    lam: float,
    budget: float,
    q: float,
    objective: Objective,
    described: bool,
    gate: Gate,
    which: int,
    steps: float | None,
    width: float,
    tables: list[CostTable],
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, E, generator=generator) * width  # 60: scores of 0
    if steps is not None:  # ties
        logits = (logits / steps).round() * steps
    rows = None
    if described and tokens:
        coin = torch.rand(3, tokens, generator=generator) < 0.8
        rows = Rows(
            real=coin[0],
            sequence=torch.randint(0, tokens, (tokens,), generator=generator),
            position=torch.zeros(tokens, dtype=torch.int64),
            is_prefill=~coin[1],
        )
        logits[~coin[2]] = logits[~coin[2]].masked_fill(torch.arange(E) == seed % E, torch.nan)
    how = {
        "table": tables[which],
        "gate": gate,
        "policy": Marginal(lam=lam, budget=budget, q=q, objective=objective),
        "rows": rows,
    }
    fast, slow = route(logits, **how), by_tensors(logits, **how)
    assert torch.equal(fast.indices, slow.indices)
    assert torch.equal(fast.used, slow.used)
    assert torch.equal(fast.counts, slow.counts)
    assert torch.equal(fast.gate_mass_lost, slow.gate_mass_lost)
    assert torch.allclose(fast.weights, slow.weights, rtol=1e-6, atol=0, equal_nan=True)


def test_a_first_expert_of_no_share_hides_nothing_of_its_row(tables: list[CostTable]) -> None:
    logits = torch.full((1, E), -4.0)
    logits[0, :4] = torch.tensor([-40.0, 2.0, 1.0, 0.0])
    bias = torch.zeros(E)
    bias[0] = 5.0
    gate = Gate(top_k=4, score="sigmoid", bias=bias)
    how = {"table": tables[0], "gate": gate, "policy": Marginal(lam=0.01, q=0.0)}
    fast, slow = route(logits, **how), by_tensors(logits, **how)
    assert fast.gate_mass_lost.item() == slow.gate_mass_lost.item() < 0.2


def test_a_term_that_costs_nothing_here_decides_nothing(
    make_table: Callable[..., CostTable],
) -> None:
    heat_less = make_table([(100.0, 1.0, 0.0)] * E, 4)
    logits = torch.randn(8, E, generator=torch.Generator().manual_seed(1)) * 2
    lookup = heat_less.lookup(torch.device("cpu"))
    plain = select(logits, Gate(top_k=4))
    both, one = (
        marginal_cpu.decide(
            plain, lookup, Terms(*weights, 0.1, 1.0, ONE), real=None, changeable=None
        )
        for weights in ((0.5, 0.5), (0.5, 0.0))
    )
    assert torch.equal(both.counts, one.counts)
    assert (one.counts > 0).sum() < (plain.indices.flatten().bincount() > 0).sum()


def test_rows_may_be_a_view_with_strides(tables: list[CostTable]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, E, generator=generator) * 2
    real = (torch.rand(40, 3, generator=generator) < 0.7)[:, 1]
    known = {"sequence": torch.arange(40), "position": torch.zeros(40, dtype=torch.int64)}
    # Read as prompts, also the rows that may be changed are the view.
    how = {"policy": Marginal(lam=0.5, prefill=True), "table": tables[0], "gate": Gate(top_k=4)}
    got, expected = (
        route(logits, rows=Rows(real=each, is_prefill=each, **known), **how)
        for each in (real, real.contiguous())
    )
    assert torch.equal(got.indices, expected.indices)
    assert torch.equal(got.counts, expected.counts)


def test_without_a_compiler_tensors_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    assert compiled.library.__wrapped__("marginal.c") is None


def test_a_compiler_that_fails_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("COSTPROF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compiled.shutil, "which", lambda name: str(broken))
    assert compiled.library.__wrapped__("marginal.c") is None
    assert list((tmp_path / "cache" / "costprof").iterdir()) == []


def test_it_is_compiled_once_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COSTPROF_CACHE", str(tmp_path))
    assert compiled.library.__wrapped__("marginal.c") is not None
    (built,) = (tmp_path / "costprof").iterdir()
    before = built.stat().st_mtime_ns
    assert compiled.library.__wrapped__("marginal.c") is not None
    assert built.stat().st_mtime_ns == before


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSTPROF_COMPILE", "0")
    assert compiled.library.__wrapped__("marginal.c") is None
