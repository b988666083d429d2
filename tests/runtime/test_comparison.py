"""Policies side by side: order of timing, prices, and what is called lost."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from costprof.core.expert import ExpertClass
from costprof.costmodel.table import CostTable
from costprof.routing import Gate, Marginal, TopK, route
from costprof.runtime import MoELayer, comparison
from costprof.runtime.adapt import AdaptConfig
from costprof.runtime.comparison import Variant

E, K = 6, 2
GATE = Gate(top_k=K)
PLAIN = Variant(name="top-k", policy=TopK())
PRUNED = Variant(name="marginal", policy=Marginal(lam=5.0, q=0.3))


@pytest.fixture(scope="module")
def table(make_table: Callable[..., CostTable]) -> CostTable:
    return make_table([ExpertClass(d_model=64, d_ff=64, dtype="float32")] * E, K)


@pytest.fixture(scope="module")
def layer(table: CostTable) -> MoELayer:
    generator = torch.Generator().manual_seed(0)
    router = torch.randn(E, 64, generator=generator) / 8
    return MoELayer.random(router, gate=GATE, table=table, generator=generator)


@pytest.fixture
def batches() -> list[torch.Tensor]:
    return list(torch.randn(3, 4, 64, generator=torch.Generator().manual_seed(1)))


ZEROS = [torch.zeros(E)] * 3


def test_decisions_are_priced_and_nothing_is_lost_by_plain_top_k(
    layer: MoELayer, table: CostTable, batches: list[torch.Tensor]
) -> None:
    logits = [x @ layer.gate_weight.T for x in batches]
    plain, pruned = (
        comparison.decide(variant, logits, ZEROS, table=table, gate=GATE)
        for variant in (PLAIN, PRUNED)
    )
    assert plain.gate_mass_lost == [0.0] * 3
    for b, batch in enumerate(logits):
        own = route(batch, table=table, gate=GATE, policy=PRUNED.policy)
        assert pruned.gate_mass_lost[b] == pytest.approx(own.gate_mass_lost.mean().item(), abs=1e-6)
        assert pruned.latency_us[b] == own.predicted.latency_us.item()
        assert pruned.energy_mj[b] == own.predicted.energy_mj.item()
        assert pruned.active_experts[b] == own.counts.count_nonzero().item()
        read = sum(table.expert_weight_bytes[e].item() for e in set(own.indices[own.used].tolist()))
        assert pruned.weight_bytes[b] == read
        shares = own.counts.double() / own.counts.sum()
        assert pruned.imbalance[b] == pytest.approx(E * shares.square().sum().item())
        assert pruned.latency_us[b] <= plain.latency_us[b]
    assert sum(pruned.active_experts) < sum(plain.active_experts)
    assert pruned.energy_sources == {"modelled"}
    assert pruned.tiers <= {"measured", "interpolated"}


def test_an_adapted_router_loses_mass_of_the_unadapted_one(
    layer: MoELayer, table: CostTable, batches: list[torch.Tensor]
) -> None:
    logits = [x @ layer.gate_weight.T for x in batches]
    offset = torch.zeros(E)
    offset[0] = 50.0
    adapted = Variant(name="adapted", policy=TopK(), adapted=True)
    lost = comparison.decide(adapted, logits, [offset] * 3, table=table, gate=GATE).gate_mass_lost
    for b, batch in enumerate(logits):
        expected = []
        for row in torch.softmax(batch, -1).tolist():
            own = sorted(range(E), key=lambda e: -row[e])[:K]
            now = {0, *sorted(range(1, E), key=lambda e: -row[e])[: K - 1]}
            expected.append(1 - sum(row[e] for e in own if e in now) / sum(row[e] for e in own))
        assert lost[b] == pytest.approx(sum(expected) / len(expected), abs=1e-6)


def test_the_first_batch_is_routed_without_an_offset_and_updates_are_charged(
    layer: MoELayer, table: CostTable, batches: list[torch.Tensor]
) -> None:
    logits = [x @ layer.gate_weight.T for x in batches]
    offsets, spent_us, state = comparison.adapt_over(
        logits, config=AdaptConfig(), table=table, gate=GATE
    )
    assert not offsets[0].any()
    assert offsets[1].any()
    assert not torch.equal(offsets[2], state.offset)
    assert state.charged_us == pytest.approx(sum(spent_us))
    assert min(spent_us) > 0


def test_timing_goes_there_and_back_and_evicts_before_each_call(
    layer: MoELayer, batches: list[torch.Tensor]
) -> None:
    events = []

    class Spy(TopK):
        def __init__(self, name: str) -> None:
            object.__setattr__(self, "name", name)

        @property
        def neutral(self) -> bool:
            events.append(self.name)
            return True

    variants = [Variant(name=name, policy=Spy(name)) for name in "AB"]
    found = comparison.measure(
        variants,
        layer,
        batches[:2],
        ZEROS[:2],
        [[None] * 2] * 2,
        repeats=1,
        evict=lambda: events.append("evict"),
        tick=lambda: events.append("tick"),
    )
    # Layer there and back, then routing alone: a first call, and one that counts.
    first = [*("evict", "A", "evict", "B", "evict", "B", "evict", "A"), *"AABB", "tick"]
    second = [*("evict", "B", "evict", "A", "evict", "A", "evict", "B"), *"BBAA", "tick"]
    assert events == ["A", "B", *first, *second]
    assert [len(each.layer_us) for each in found] == [2, 2]
    assert all(us > 0 for each in found for us in (*each.layer_us, *each.routing_us))


def test_output_difference_is_relative_to_plain_top_k(
    layer: MoELayer, batches: list[torch.Tensor]
) -> None:
    assert comparison.output_differences(PLAIN, layer, batches, ZEROS, [None] * 3) == [0.0] * 3
    assert 0 < sum(comparison.output_differences(PRUNED, layer, batches, ZEROS, [None] * 3)) < 6


def test_the_evicting_buffer_is_larger_than_the_cache() -> None:
    evict = comparison.evictor(2**20, torch.device("cpu"))
    evict()
    (buffer,) = (cell.cell_contents for cell in evict.__closure__)
    assert buffer.nbytes == 64 * 2**20
    assert (buffer == 1).all()


def test_a_measured_layer_takes_the_time_it_takes(
    table: CostTable, layer: MoELayer, batches: list[torch.Tensor]
) -> None:
    hooks = [expert.register_forward_hook(lambda *_: time.sleep(0.005)) for expert in layer.experts]
    try:
        (measured,) = comparison.measure(
            [PLAIN],
            layer,
            batches[:1],
            ZEROS[:1],
            [[None]],
            repeats=1,
            evict=lambda: None,
            tick=lambda: None,
        )
        active = int((layer.run(batches[0]).assignment.counts > 0).sum())
    finally:
        for hook in hooks:
            hook.remove()
    assert 5_000 * active <= measured.layer_us[0] <= 100_000 * active
    assert 0 < measured.routing_us[0] < 1e6
