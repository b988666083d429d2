"""The smoothed top-k: sums, limits, gradients, and prices against drawing batches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from costprof.costmodel.table import CostTable
from costprof.routing.relaxation import expected_cost, inclusion

E, K = 6, 2


@pytest.fixture(scope="module")
def table(make_table: Callable[..., CostTable]) -> CostTable:
    return make_table([(50.0, 1.0, 0.02), (200.0, 1.0, 0.02)] * (E // 2), K)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([0.0, 0.5, 3.0, 30.0]),
    top_k=st.integers(1, 4),
    closed=st.integers(0, 4),
)
def test_every_row_uses_k_of_the_allowed(seed: int, scale: float, top_k: int, closed: int) -> None:
    logits = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed)) * scale
    allowed = torch.ones(4, 8, dtype=torch.bool)
    allowed[:, :closed] = False
    use = inclusion(logits, allowed, top_k)
    assert use.sum(-1).tolist() == pytest.approx([top_k] * 4, abs=1e-6)
    assert not use[~allowed].any()
    assert (use >= 0).all()
    assert (use <= 1).all()


def test_a_certain_row_uses_its_top_k() -> None:
    logits = torch.tensor([[100.0, -100.0, 50.0, -50.0]])
    use = inclusion(logits, torch.ones(1, 4, dtype=torch.bool), 2)
    assert use[0].tolist() == pytest.approx([1.0, 0.0, 1.0, 0.0], abs=1e-9)


def test_the_gradient_goes_through_the_threshold() -> None:
    logits = torch.randn(3, E, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    allowed = torch.ones(3, E, dtype=torch.bool)
    allowed[0, 2] = False
    assert torch.autograd.gradcheck(
        lambda z: inclusion(z, allowed, K), logits.requires_grad_(), atol=1e-6
    )


def test_certain_rows_cost_what_the_table_says(table: CostTable) -> None:
    use = torch.tensor([[1.0, 0, 1, 0, 0, 0], [1, 0, 0, 1, 0, 0]], dtype=torch.float64)
    exact = table.layer_cost(use.sum(0).long())
    price = expected_cost(use, table)
    assert price.latency_us.item() == pytest.approx(exact.latency_us.item(), rel=1e-6)
    assert price.energy_mj.item() == pytest.approx(exact.energy_mj.item(), rel=1e-6)


def test_expected_price_is_the_mean_over_drawn_batches(table: CostTable) -> None:
    """The table is affine above 0, where the expectation is exact."""
    generator = torch.Generator().manual_seed(1)
    use = torch.rand(5, E, generator=generator, dtype=torch.float64)
    drawn = torch.rand(20000, 5, E, generator=generator, dtype=torch.float64) < use
    mean = table.layer_cost(drawn.sum(1)).latency_us.mean().item()
    assert expected_cost(use, table).latency_us.item() == pytest.approx(mean, rel=0.005)
