"""Adaptation: its gradient, its guards, and that it is off unless asked for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from costprof.core.errors import InputError
from costprof.core.expert import ExpertClass
from costprof.costmodel.table import CostTable
from costprof.routing import Gate, Rows
from costprof.runtime import MoELayer
from costprof.runtime.adapt import AdaptConfig, AdaptState, adapt_step

E, K = 6, 2
GATE = Gate(top_k=K)
SGD = AdaptConfig(optimiser="sgd", learning_rate=1.0, max_norm=100.0)


@pytest.fixture(scope="module")
def table(make_table: Callable[..., CostTable]) -> CostTable:
    cheap = ExpertClass(d_model=64, d_ff=64, dtype="float32", quantisation="int4")
    dear = ExpertClass(d_model=64, d_ff=256, dtype="float32")
    return make_table([cheap, dear] * (E // 2), K)


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(10, E, generator=torch.Generator().manual_seed(2))


def naive_cost(rows: list[list[float]], k: int, table: CostTable) -> float:
    """Expected latency: bisection for each row's threshold, then experts one by one."""
    use = []
    for row in rows:
        low, high = min(row) - 50.0, max(row) + 50.0
        for _ in range(200):
            middle = (low + high) / 2
            total = sum(1 / (1 + math.exp(middle - value)) for value in row)
            low, high = (middle, high) if total > k else (low, middle)
        use.append([1 / (1 + math.exp(low - value)) for value in row])
    cost = 0.0
    for e in range(len(rows[0])):
        awake = 1 - math.prod(1 - row[e] for row in use)
        each = sum(row[e] for row in use) / awake
        below = table.cost(e, math.floor(each)).latency_us
        above = table.cost(e, math.floor(each) + 1).latency_us
        cost += awake * (below + (each - math.floor(each)) * (above - below))
    return cost


def step(logits: Tensor, table: CostTable, config: AdaptConfig = SGD, **more: Any) -> AdaptState:
    state = more.pop("state", AdaptState.start(E))
    return adapt_step(logits, state, config=config, table=table, gate=GATE, **more)


def loss_at(offset: list[float], logits: Tensor, table: CostTable, lam: float) -> float:
    """The objective written out in Python floats."""
    rows = [[v + s for v, s in zip(r, offset, strict=True)] for r in logits.double().tolist()]
    entropy = 0.0
    for row in rows:
        total = sum(math.exp(value) for value in row)
        entropy -= sum(math.exp(v) / total * math.log(math.exp(v) / total) for v in row)
    plain = naive_cost(logits.double().tolist(), K, table)
    return entropy / len(rows) + lam * naive_cost(rows, K, table) / plain


@pytest.mark.parametrize("lam", [0.0, 1.0, 20.0])
def test_one_sgd_step_is_the_numeric_gradient(logits: Tensor, table: CostTable, lam: float) -> None:
    config = dataclasses.replace(SGD, lam=lam, skip_entropy=1.0)
    offset = step(logits, table, config).offset
    nudge = 1e-5
    for e in range(E):
        up, down = [0.0] * E, [0.0] * E
        up[e], down[e] = nudge, -nudge
        slope = (loss_at(up, logits, table, lam) - loss_at(down, logits, table, lam)) / (2 * nudge)
        assert offset[e].item() == pytest.approx(-slope, abs=2e-4 * max(1.0, lam))


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_cost_pulls_towards_the_cheap_experts(
    logits: Tensor, table: CostTable, optimiser: str
) -> None:
    few = logits[:3]
    config = AdaptConfig(
        optimiser=optimiser, lam=20.0, learning_rate=0.02, max_norm=2.0, skip_entropy=1.0
    )
    state = AdaptState.start(E)
    for _ in range(40):
        state = step(few, table, config, state=state)
    assert state.offset[0::2].mean() > state.offset[1::2].mean() + 0.5
    before = naive_cost(few.tolist(), K, table)
    assert naive_cost((few + state.offset).tolist(), K, table) < 0.9 * before


def test_the_first_adam_step_has_the_length_of_the_learning_rate(
    logits: Tensor, table: CostTable
) -> None:
    state = step(logits, table, AdaptConfig(learning_rate=0.05))
    assert state.offset.abs().tolist() == pytest.approx([0.05] * E, rel=1e-3)


def test_the_offset_stays_within_its_norm(logits: Tensor, table: CostTable) -> None:
    state = AdaptState.start(E)
    for _ in range(5):
        state = step(logits, table, AdaptConfig(learning_rate=1.0, max_norm=0.5), state=state)
        assert state.offset.norm() <= 0.5 + 1e-6
    assert state.updates == 5


def test_uncertain_rows_do_not_pull(logits: Tensor, table: CostTable) -> None:
    config = dataclasses.replace(SGD, lam=0.0, skip_entropy=0.9)
    flat = torch.zeros(4, E)
    sharp = 4 * logits
    alone = step(sharp, table, config)
    mixed = step(torch.cat([sharp, flat]), table, config)
    assert torch.allclose(mixed.offset, alone.offset, atol=1e-6)
    assert mixed.rows_skipped == alone.rows_skipped + 4
    none = step(flat, table, config)
    assert not none.offset.any()
    assert none.updates == 0


def test_collapse_resets_the_offset(table: CostTable) -> None:
    """Routers grown certain of one expert each: below the floor the offset is given up."""
    config = AdaptConfig(floor_entropy=0.3, ema=0.0)
    state = step(torch.randn(10, E, generator=torch.Generator().manual_seed(2)), table, config)
    assert state.offset.any()
    certain = torch.full((4, E), -20.0)
    certain[:, 1] = 20.0
    state = step(certain, table, config, state=state)
    assert not state.offset.any()
    assert (state.resets, state.steps, state.entropy_ema) == (1, 0, None)


def test_padding_rows_do_not_count(logits: Tensor, table: CostTable) -> None:
    rows = Rows.decode(12)
    rows.real[10:] = False
    padded = torch.cat([logits, torch.full((2, E), float("nan"))])
    got = step(padded, table, rows=rows)
    assert torch.allclose(got.offset, step(logits, table).offset, atol=1e-6)
    rows.real[:] = False
    assert step(padded, table, rows=rows).updates == 0


def test_logits_that_are_not_finite_move_nothing(logits: Tensor, table: CostTable) -> None:
    logits[0, 0] = float("inf")
    state = step(logits, table, dataclasses.replace(SGD, lam=0.0))
    assert not state.offset.any()


def test_it_works_on_tensors_of_inference_mode(logits: Tensor, table: CostTable) -> None:
    expected = step(logits, table)
    with torch.inference_mode():
        state = step(logits + 0.0, table, state=AdaptState.start(E))
        state = step(logits + 0.0, table, state=state)
    assert torch.equal(step(logits, table, state=expected).offset, state.offset)


def test_groups_the_gate_forbids_get_no_gradient(table: CostTable) -> None:
    gate = Gate(top_k=K, score="sigmoid", n_group=3, topk_group=1)
    logits = torch.tensor([[2.0, 2.5, -1.0, -2.0, -1.0, 0.0]])
    state = adapt_step(logits, AdaptState.start(E), config=SGD, table=table, gate=gate)
    assert state.offset[:2].all()
    assert not state.offset[2:].any()


def test_outputs_come_from_before_the_update_and_off_is_bitwise_neutral(
    table: CostTable,
) -> None:
    generator = torch.Generator().manual_seed(0)
    router = torch.randn(E, 64, generator=generator) / 8
    layer = MoELayer.random(router, gate=GATE, table=table, generator=generator)
    batches = torch.randn(3, 5, 64, generator=generator)
    plain = [layer(x) for x in batches]
    state, adapted = AdaptState.start(E), []
    for x in batches:
        out = layer.run(x, logit_offset=state.offset)
        state = step(out.logits, table, AdaptConfig(learning_rate=5.0, max_norm=9.0), state=state)
        adapted.append(out.hidden)
    assert torch.equal(adapted[0], plain[0])
    assert not torch.equal(adapted[1], plain[1])
    assert all(torch.equal(layer(x), out) for x, out in zip(batches, plain, strict=True))


def test_time_is_booked(logits: Tensor, table: CostTable) -> None:
    state = step(logits, table).charge(120.0).charge(30.0)
    assert state.charged_us == 150.0
    assert step(logits, table, state=state).charged_us == 150.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lam": -1.0}, r"lam is -1.0; nothing is adapted; use at least 0"),
        ({"learning_rate": math.nan}, r"learning_rate is nan; .*"),
        ({"ema": 1.0}, r"ema is 1.0; .*; use at least 0 and below 1"),
        ({"skip_entropy": 2.0}, r"skip_entropy is 2.0; .*; use 0 … 1"),
        ({"optimiser": "lbfgs"}, r"optimiser is 'lbfgs'; .*; use adam or sgd"),
        ({"objective": "speed"}, r"objective is 'speed'; .*; use latency or energy"),
    ],
)
def test_settings_out_of_range_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AdaptConfig(**fields)


def test_an_offset_of_another_layer_is_refused(logits: Tensor, table: CostTable) -> None:
    with pytest.raises(InputError, match=r"offset of shape \[3\] for 6 experts; .*; start a state"):
        step(logits, table, state=AdaptState.start(3))
