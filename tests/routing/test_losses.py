"""Losses of a router: their values where those are known, and that training by them works."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from costprof.core.errors import InputError, TableError
from costprof.costmodel.table import CostTable
from costprof.routing import Gate, route
from costprof.routing.losses import cost_share, load_balance, router_loss

E, K = 8, 2
GATE = Gate(top_k=K)


@pytest.fixture(scope="module")
def table(make_table: Callable[..., CostTable]) -> CostTable:
    return make_table([(100.0, 1.0, 2.0)] * E, K)


def test_balance_is_one_for_even_use_and_larger_for_uneven() -> None:
    even = torch.full((E, E), -9.0)
    for t in range(E):
        even[t, [t, (t + 1) % E]] = 9.0
    assert load_balance(even, GATE).item() == pytest.approx(1.0, rel=1e-5)
    same = even[:1].expand(E, E)
    assert load_balance(same, GATE).item() == pytest.approx(E / K, rel=1e-4)


def test_balance_by_hand_and_without_padding() -> None:
    logits = torch.randn(5, E, generator=torch.Generator().manual_seed(0))
    logits[2] = torch.nan
    real = torch.tensor([True, True, False, True, True])
    kept = torch.softmax(logits[real], -1)
    counts = torch.bincount(kept.topk(K).indices.flatten(), minlength=E)
    expected = E * (counts / counts.sum() * kept.mean(0)).sum()
    assert load_balance(logits, GATE, real).item() == pytest.approx(expected.item(), rel=1e-6)


def test_cost_is_one_for_an_even_layer_and_falls_with_sleeping_experts(table: CostTable) -> None:
    even = torch.full((64, E), -60.0)
    for t in range(64):
        even[t, [t % E, (t + 1) % E]] = 60.0
    assert cost_share(even, table=table, gate=GATE).item() == pytest.approx(1.0, rel=1e-5)
    same = even[:1].expand(64, E)
    counts = torch.tensor([64, 64] + [0] * 6)
    expected = table.layer_cost(counts).latency_us / table.layer_cost(counts * 0 + 16).latency_us
    got = cost_share(same, table=table, gate=GATE)
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_cost_of_a_decode_batch_is_what_the_table_expects(table: CostTable) -> None:
    alike = torch.tensor([30.0, 29.0, 0, 0, 0, 0, 0, 0]).repeat(32, 1)
    even = 20 * torch.eye(E).repeat(4, 1) + 20 * torch.eye(E).roll(1, 0).repeat(4, 1)
    awake = 1 - (1 - K / E) ** 16
    whole = E * (awake * 100.0 + 16 * K / E * 1.0)  # prices are 100 µs and 1 µs a token
    got = cost_share(alike, table=table, gate=GATE, batch=16)
    assert got.item() == pytest.approx(2 * (100.0 + 16.0) / whole, rel=1e-5)
    assert cost_share(even, table=table, gate=GATE, batch=16).item() == pytest.approx(1.0, rel=1e-6)
    padded = torch.cat([alike, torch.full((5, E), torch.nan)])
    real = torch.arange(37) < 32
    assert cost_share(padded, table=table, gate=GATE, batch=16, real=real).item() == got.item()


def test_the_cost_of_a_decode_batch_is_that_of_sampled_ones(table: CostTable) -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(256, E, generator=generator) * 2 + torch.linspace(0, 3, E)
    drawn = [
        route(logits[torch.randint(0, 256, (4,), generator=generator)], table=table, gate=GATE)
        for _ in range(1000)
    ]
    mean = torch.stack([each.predicted.latency_us for each in drawn]).mean()
    even = torch.zeros(8 * E, E)
    even[torch.arange(8 * E), torch.arange(8 * E) % E] = 9.0
    even[torch.arange(8 * E), (torch.arange(8 * E) + 1) % E] = 8.0
    got, base = (
        cost_share(each, table=table, gate=GATE, batch=4).double() for each in (logits, even)
    )
    awake = 1 - (1 - K / E) ** 4
    whole = E * (awake * 100.0 + 4 * K / E * 1.0)
    assert base.item() == pytest.approx(1.0)
    assert (got * whole).item() == pytest.approx(mean.item(), rel=0.02)


def test_the_cost_of_a_decode_batch_falls_along_its_gradient(table: CostTable) -> None:
    logits = torch.randn(64, E, generator=torch.Generator().manual_seed(0))
    first = cost_share(logits, table=table, gate=GATE, batch=16).item()
    for _ in range(200):
        logits = logits.detach().requires_grad_()
        loss = cost_share(logits, table=table, gate=GATE, batch=16)
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = logits.detach() - 20.0 * gradient
    assert cost_share(logits, table=table, gate=GATE, batch=16).item() < 0.8 * first


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_the_loss_has_the_gradient_of_its_parts(table: CostTable, score: str) -> None:
    gate = Gate(top_k=K, score=score)  # type: ignore[arg-type]
    logits = torch.randn(6, E, generator=torch.Generator().manual_seed(1)).requires_grad_()
    task = logits.square().mean()
    parts = (task, load_balance(logits, gate), cost_share(logits, table=table, gate=gate))
    whole = router_loss(task, logits, table=table, gate=gate, balance=0.3, lam=0.5)
    assert whole.item() == pytest.approx((parts[0] + 0.3 * parts[1] + 0.5 * parts[2]).item())
    (got,) = torch.autograd.grad(whole, logits, retain_graph=True)
    each = [torch.autograd.grad(part, logits, retain_graph=True)[0] for part in parts]
    torch.testing.assert_close(got, each[0] + 0.3 * each[1] + 0.5 * each[2])
    assert all(part.abs().max() > 0 for part in each)


def test_training_by_cost_puts_experts_to_sleep_and_by_balance_wakes_them(
    table: CostTable,
) -> None:
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(2))
    active = {}
    for name, weights in {
        "cost": {"balance": 0.0, "lam": 1.0},
        "balance": {"balance": 1.0},
    }.items():
        router = torch.nn.Parameter(torch.randn(E, 16, generator=torch.Generator().manual_seed(3)))
        optimiser = torch.optim.Adam([router], lr=0.05)
        for _ in range(80):
            optimiser.zero_grad()
            loss = router_loss(torch.zeros(()), x @ router.T, table=table, gate=GATE, **weights)
            loss.backward()
            optimiser.step()
        counts = route((x @ router.T).detach(), table=table, gate=GATE).counts
        active[name] = int(counts.count_nonzero())
    assert active["cost"] <= 4
    assert active["balance"] >= 7


def test_what_cannot_be_weighed_is_refused(
    table: CostTable, make_table: Callable[..., CostTable]
) -> None:
    logits = torch.zeros(2, E)
    with pytest.raises(InputError, match=r"lam is -1.0; the router has no loss; use at"):
        router_loss(torch.zeros(()), logits, table=table, gate=GATE, lam=-1.0)
    with pytest.raises(InputError, match=r"batch is 0; the router has no loss; use a whole"):
        cost_share(logits, table=table, gate=GATE, batch=0)
    free = make_table([(100.0, 1.0, 0.0)] * E, K)
    with pytest.raises(TableError, match="energy_mj is 0 or not finite; nothing can be routed by"):
        cost_share(logits, table=free, gate=GATE, objective="energy")


@pytest.mark.parametrize("batch", [None, 16])
def test_a_loss_needs_no_value_on_the_host(table: CostTable, batch: int | None) -> None:
    logits = torch.randn(6, E, device="meta")
    loss = router_loss(
        torch.zeros((), device="meta"), logits, table=table, gate=GATE, lam=1.0, batch=batch
    )
    assert loss.is_meta
    assert loss.shape == ()


@pytest.mark.parametrize("batch", [None, 16])
def test_a_loss_compiles_as_one_graph_with_its_gradient(
    table: CostTable, batch: int | None
) -> None:
    def loss(logits: torch.Tensor) -> torch.Tensor:
        return cost_share(logits, table=table, gate=GATE, batch=batch)

    torch.compiler.reset()
    logits = torch.randn(6, E, generator=torch.Generator().manual_seed(5)).requires_grad_()
    values = [f(logits) for f in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager"))]
    assert torch.equal(*values)
    gradients = [torch.autograd.grad(value, logits)[0] for value in values]
    torch.testing.assert_close(*gradients)
    torch.compiler.reset()
