"""Each policy against its algorithm written out plainly, and what only it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
import torch

from costprof.core.errors import InputError, TableError
from costprof.costmodel.table import CostTable
from costprof.routing import (
    OEA,
    Budget,
    CachePrior,
    CostBias,
    Fewer,
    Gate,
    Lynx,
    Objective,
    Prune,
    Rows,
    Skip,
    StaticSet,
    StatisticalBalance,
    TileRound,
    route,
    static_optimal,
)
from costprof.routing.history import Resident

E, K, T = 32, 4, 12
GATE = Gate(top_k=K)


@pytest.fixture(scope="module")
def table(make_table: Callable[..., CostTable]) -> CostTable:
    return make_table([(100.0, 1.0, 2.0)] * E, K)


@pytest.fixture(scope="module")
def mixed(make_table: Callable[..., CostTable]) -> CostTable:
    return make_table([(100.0, 1.0, 2.0), (20.0, 1.0, 2.0)] * (E // 2), K)


def logits_of(seed: int, tokens: int = T) -> torch.Tensor:
    return torch.randn(tokens, E, generator=torch.Generator().manual_seed(seed)) * 1.5


def top(logits: torch.Tensor, among: set[int], k: int = K) -> list[set[int]]:
    """Each row's k best experts `among` some."""
    order = logits.argsort(dim=-1, descending=True).tolist()
    return [set([e for e in row if e in among][:k]) for row in order]


def chosen(logits: torch.Tensor, table: CostTable, policy: Any, **more: Any) -> list[set[int]]:
    got = route(logits, table=table, gate=GATE, policy=policy, **more)
    return [set(got.indices[t][got.used[t]].tolist()) for t in range(len(logits))]


@pytest.mark.parametrize("k0", [1, 2, 3])
def test_oea_fills_up_from_the_union_in_rank_order(table: CostTable, k0: int) -> None:
    logits = logits_of(k0)
    union = set().union(*top(logits, set(range(E)), k0))
    assert chosen(logits, table, OEA(k0=k0)) == top(logits, union)


@pytest.mark.parametrize("experts", [4, 12, 16, 24])
def test_a_budget_takes_the_experts_of_most_mass(table: CostTable, experts: int) -> None:
    logits = logits_of(experts)
    scores, indices = torch.softmax(logits, -1).topk(K)
    share = scores / scores.sum(-1, keepdim=True)
    mass = torch.zeros(E).scatter_add_(0, indices.flatten(), share.flatten()).tolist()
    kept = set(indices[:, 0].tolist())
    for e in sorted(range(E), key=lambda e: -mass[e]):
        if len(kept) < experts and mass[e] > 0:
            kept.add(e)
    assert chosen(logits, table, Budget(experts=experts)) == top(logits, kept)


def test_lynx_drops_the_least_popular_that_nobody_holds_dear(table: CostTable) -> None:
    logits = logits_of(7)
    scores, indices = torch.softmax(logits, -1).topk(K)
    share = scores / scores.sum(-1, keepdim=True)
    firm = set(indices[:, 0].tolist()) | set(indices[share >= 0.2].tolist())
    counts = torch.bincount(indices.flatten(), minlength=E)
    active = set(indices.flatten().tolist())
    loose = sorted(active - firm, key=lambda e: (int(counts[e]), e))
    assert loose
    gone = set(loose[: int(0.2 * len(active))])
    assert gone
    expected = top(logits, active - gone)
    assert chosen(logits, table, Lynx(drop=0.2, affinity=0.2)) == expected


def test_skip_and_fewer_are_smaller_top_k(table: CostTable) -> None:
    logits = logits_of(1)
    assert chosen(logits, table, Fewer(k=2)) == top(logits, set(range(E)), 2)
    got = route(logits, table=table, gate=GATE, policy=Fewer(k=2))
    small = route(logits, table=table, gate=Gate(top_k=2))
    torch.testing.assert_close(got.weights[:, :2], small.weights)
    scores = torch.softmax(logits, -1)
    expected = [
        {e for e in row if scores[t, e] >= 0.3 * scores[t].max()}
        for t, row in enumerate(top(logits, set(range(E))))
    ]
    assert chosen(logits, table, Skip(beta=0.3)) == expected


def test_cost_bias_does_nothing_where_experts_cost_the_same(table: CostTable) -> None:
    logits = logits_of(2)
    plain = route(logits, table=table, gate=GATE)
    got = route(logits, table=table, gate=GATE, policy=CostBias(alpha=50.0, beta=50.0))
    assert torch.equal(got.indices, plain.indices)
    assert torch.equal(got.weights, plain.weights)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_cost_bias_is_top_k_of_logits_less_cost(mixed: CostTable, score: Any) -> None:
    logits, gate = logits_of(3), Gate(top_k=K, score=score)
    energy = torch.tensor([mixed.cost(e, 2).energy_mj for e in range(E)])
    heat = torch.tensor([mixed.cost(e, 2).temp_rise_c for e in range(E)])
    heat_by_energy = torch.tensor([mixed.cost(e, 1).temp_rise_c for e in range(E)])
    heat = energy * heat_by_energy / torch.tensor([mixed.cost(e, 1).energy_mj for e in range(E)])
    biased = logits - 0.5 * energy / energy.mean() - 0.25 * heat / heat.mean()
    policy = CostBias(alpha=0.5, beta=0.25, tokens=2)
    got = route(logits, table=mixed, gate=gate, policy=policy)
    assert [set(row) for row in got.indices.tolist()] == top(biased, set(range(E)))
    assert got.predicted.energy_mj < route(logits, table=mixed, gate=gate).predicted.energy_mj
    # Weights know nothing of cost.
    scores = torch.softmax(logits, -1) if score == "softmax" else torch.sigmoid(logits)
    own = scores.gather(-1, got.indices)
    torch.testing.assert_close(got.weights, own / own.sum(-1, keepdim=True))


def test_cache_prior_raises_resident_experts_by_the_running_range(table: CostTable) -> None:
    first, second = logits_of(4), logits_of(5)
    policy = CachePrior(lam=0.3, top_j=2)
    started = route(first[:3], table=table, gate=GATE, policy=policy)
    assert [set(row) for row in started.indices.tolist()] == top(first[:3], set(range(E)))
    resident = started.counts > 0
    assert torch.equal(started.history.experts, resident)
    mean = (first[:3].amax(-1) - first[:3].amin(-1)).mean()
    raised = second + 0.3 * mean * resident
    raised.scatter_(-1, second.topk(2).indices, torch.inf)
    got = route(second, table=table, gate=GATE, policy=policy, history=started.history)
    assert [set(row) for row in got.indices.tolist()] == top(raised, set(range(E)))
    awake = got.counts.count_nonzero()
    assert awake < route(second, table=table, gate=GATE).counts.count_nonzero()
    ranges = torch.cat([first[:3], second])
    expected = (ranges.amax(-1) - ranges.amin(-1)).mean().item()
    after = got.history
    assert after.range_sum.item() / after.rows.item() / 2**20 == pytest.approx(expected, rel=1e-5)


def test_balance_evens_out_a_skewed_workload(table: CostTable) -> None:
    skew = torch.linspace(1.5, -1.5, E)
    shares = {}
    for rate in (0.0, 0.002):
        history, counts = None, torch.zeros(E)
        policy = StatisticalBalance(rate=rate, max_bias=0.2)
        for step in range(60):
            logits = logits_of(step) + skew
            got = route(logits, table=table, gate=GATE, policy=policy, history=history)
            history = got.history
            counts += got.counts * (step >= 30)
        shares[rate] = float(counts.max() / counts.sum())
    assert shares[0.002] < 0.8 * shares[0.0]


def test_prune_switches_off_what_is_asked_for_least(table: CostTable) -> None:
    skew = torch.linspace(3.0, -3.0, E)
    policy, history = Prune(share=0.25), None
    for step in range(40):
        logits = logits_of(step) + skew
        got = route(logits, table=table, gate=GATE, policy=policy, history=history)
        history = got.history
    assert not got.counts[-4:].any()
    asked = history.share.argsort(stable=True)[: E // 4].tolist()
    last = route(logits_of(99), table=table, gate=GATE, policy=policy, history=history)
    assert not last.counts[asked].any()
    assert last.counts.count_nonzero() > E // 2


def test_a_pruned_row_still_finds_an_expert_in_its_last_open_group(table: CostTable) -> None:
    gate = Gate(top_k=K, n_group=8, topk_group=2)
    got = route(logits_of(6), table=table, gate=gate, policy=Prune(off=tuple(range(E - 1))))
    assert got.counts.tolist() == [0] * (E - 1) + [T]
    torch.testing.assert_close(got.weights[:, 0], torch.ones(T))


def test_tile_rounding_drops_the_least_of_each_partial_tile(table: CostTable) -> None:
    logits = logits_of(8, 40)
    plain = route(logits, table=table, gate=GATE)
    got = route(logits, table=table, gate=GATE, policy=TileRound(block_m=4, q=0.6))
    share = plain.weights  # of gate mass, as the gate renormalises
    rounded = 0
    for e in range(E):
        if got.counts[e] == plain.counts[e]:
            continue
        rounded += 1
        assert got.counts[e] == plain.counts[e] // 4 * 4
        at = plain.indices == e
        gone = at & ~got.used
        kept = at & got.used & (torch.arange(K) > 0)
        assert gone.sum() == plain.counts[e] % 4
        assert not kept.any() or share[gone].max() <= share[kept].min()
    assert rounded > 5


def test_tile_rounding_touches_prompts_only_when_told(table: CostTable) -> None:
    logits = logits_of(9, 40)
    prompt = Rows(
        real=torch.ones(40, dtype=torch.bool),
        sequence=torch.zeros(40, dtype=torch.int64),
        position=torch.arange(40),
        is_prefill=torch.ones(40, dtype=torch.bool),
    )
    common = {"table": table, "gate": GATE, "rows": prompt}
    plain = route(logits, **common)
    careful = route(logits, **common, policy=TileRound(block_m=4, q=0.6))
    told = route(logits, **common, policy=TileRound(block_m=4, q=0.6, prefill=True))
    assert torch.equal(careful.counts, plain.counts)
    assert told.counts.sum() < plain.counts.sum()


def test_a_static_set_is_within_its_bound_and_cheaper_the_looser_that_is(
    mixed: CostTable,
) -> None:
    batches = [logits_of(seed) for seed in range(4)]
    costs = []
    for bound in (0.0, 0.05, 0.2, 0.6):
        policy = static_optimal(batches, table=mixed, gate=GATE, mass_lost=bound)
        done = [route(each, table=mixed, gate=GATE, policy=policy) for each in batches]
        assert torch.cat([each.gate_mass_lost for each in done]).mean() <= bound + 1e-9
        costs.append(sum(float(each.predicted.latency_us) for each in done))
    assert costs == sorted(costs, reverse=True)
    assert costs[3] < 0.8 * costs[0]


def test_a_static_set_prefers_cheap_experts(mixed: CostTable) -> None:
    batches = [torch.randn(T, E, generator=torch.Generator().manual_seed(s)) for s in range(6)]
    policy = static_optimal(batches, table=mixed, gate=GATE, mass_lost=0.4)
    assert policy.kept is not None
    cheap = sum(e % 2 for e in policy.kept)
    assert cheap > len(policy.kept) - cheap


def test_padding_has_no_say_in_a_static_set(mixed: CostTable) -> None:
    batches = [logits_of(seed) for seed in range(3)]
    junk = torch.full((9, E), torch.nan)
    padded = [torch.cat([each, junk]) for each in batches]
    padded.append(10 * torch.randn(T + 9, E, generator=torch.Generator().manual_seed(7)))
    real = torch.arange(T + 9) < T
    rows = [replace(Rows.decode(T + 9), real=mine) for mine in (real, real, real, real & False)]
    for bound in (0.05, 0.3):
        alone = static_optimal(batches, table=mixed, gate=GATE, mass_lost=bound)
        common: dict[str, Any] = {"table": mixed, "gate": GATE, "mass_lost": bound}
        assert static_optimal(padded, **common, rows=rows) == alone
        assert alone.kept is not None
    with pytest.raises(InputError, match="no batch has a real row; no set was chosen"):
        static_optimal(padded[3:], table=mixed, gate=GATE, mass_lost=0.1, rows=rows[3:])
    with pytest.raises(InputError, match="rows do not describe the batches"):
        static_optimal(padded, table=mixed, gate=GATE, mass_lost=0.1, rows=rows[1:])


def test_a_row_that_is_not_finite_has_no_say_in_a_static_set(mixed: CostTable) -> None:
    batch = logits_of(0)
    batch[2] = torch.nan
    policy = static_optimal([batch], table=mixed, gate=GATE, mass_lost=0.2)
    done = route(batch, table=mixed, gate=GATE, policy=policy)
    others = torch.arange(T) != 2
    assert policy.kept is not None
    assert 0 < done.gate_mass_lost[others].mean() <= 0.2 + 1e-9


def test_an_objective_weighs_shares_of_plain_cost(mixed: CostTable) -> None:
    plain = torch.tensor([4, 2] + [0] * (E - 2))
    fewer = torch.tensor([4, 0] + [0] * (E - 2))
    one, both = mixed.layer_cost(fewer), mixed.layer_cost(plain)
    bytes_ = mixed.expert_weight_bytes
    expected = {
        "latency": one.latency_us / both.latency_us,
        "energy": one.energy_mj / both.energy_mj,
        "memory": bytes_[0] / bytes_[:2].sum(),
        "balance": torch.tensor(1.0 / (16 / 36 + 4 / 36)),
    }
    none = {"latency": 0.0}
    for name, value in expected.items():
        goal = Objective(**{**none, name: 2.0})
        got = goal.layer(torch.stack([fewer, plain]), mixed, plain=plain)
        assert got.tolist() == pytest.approx([float(value), 1.0])
        if name != "balance":
            saved = goal.saved(plain, fewer, mixed)
            assert saved.sum().item() == pytest.approx(1.0 - float(value))
    mean = Objective(latency=1.0, memory=3.0).layer(fewer, mixed, plain=plain)
    expected_mean = (expected["latency"] + 3 * expected["memory"]) / 4
    assert mean.item() == pytest.approx(expected_mean.item())
    heat = Objective(latency=0.0, thermal=1.0).experts(plain, mixed)
    constants = mixed.expert_constants("cpu").heat_c_per_mj
    each = mixed.expert_costs(plain).energy_mj * constants
    torch.testing.assert_close(heat, each / each.sum())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: OEA(k0=0),
            "k0 is 0; the policy cannot be built; use a whole number of at least 1",
        ),
        (lambda: Fewer(k=1.5), "k is 1.5; .*"),  # type: ignore[arg-type]
        (lambda: Budget(experts=-1), "experts is -1; .*"),
        (lambda: Budget(keep=0), "keep is 0; .*"),
        (lambda: Skip(beta=2.0), "beta is 2.0; .*; use 0 … 1"),
        (lambda: Lynx(drop=float("nan")), "drop is nan; .*"),
        (lambda: CostBias(alpha=-1.0), "alpha is -1.0; .*; use at least 0"),
        (lambda: TileRound(block_m=0), "block_m is 0; .*"),
        (lambda: Prune(off=(1, 1)), r"off is \[1, 1\]; .*; name each expert once"),
        (lambda: StaticSet(kept=()), "kept names no expert; .*"),
        (lambda: Objective(latency=0.0), "the sum of an objective's weights is 0.0; .*"),
    ],
)
def test_parameters_out_of_range_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_what_does_not_fit_the_layer_is_refused(
    table: CostTable, make_table: Callable[..., CostTable]
) -> None:
    logits = logits_of(0)
    common: dict[str, Any] = {"table": table, "gate": GATE}
    with pytest.raises(InputError, match="expert 40 of 32; no row was routed; use 0 … 31"):
        route(logits, **common, policy=Prune(off=(40,)))
    with pytest.raises(InputError, match="all 32 experts are off; "):
        route(logits, **common, policy=Prune(off=tuple(range(E))))
    other = Resident(
        experts=torch.zeros(3, dtype=torch.bool), range_sum=torch.tensor(0), rows=torch.tensor(0)
    )
    with pytest.raises(InputError, match="the history is of 3 experts, the layer has 32; "):
        route(logits, **common, policy=CachePrior(lam=1.0), history=other)
    with pytest.raises(InputError, match="the history is Resident, not Balance; "):
        route(logits, **common, policy=StatisticalBalance(rate=1.0), history=other)
    free = make_table([(100.0, 1.0, 0.0)] * E, K)
    policy = TileRound(block_m=4, objective=Objective(energy=1.0))
    with pytest.raises(TableError, match="energy_mj is 0 or not finite; nothing can be routed"):
        route(logits, table=free, gate=GATE, policy=policy)
    column = table.rows.column_names.index("temp_rise_c")
    unknown = pa.array([float("nan")] * len(table.rows), table.rows.schema.field(column).type)
    cold = CostTable(
        table.rows.set_column(column, table.rows.schema.field(column), unknown), table.manifest
    )
    policy = TileRound(block_m=4, objective=Objective(thermal=1.0))
    with pytest.raises(TableError, match="no expert's rise in temperature; nothing can be routed"):
        route(logits, table=cold, gate=GATE, policy=policy)


def test_what_is_kept_from_serving_can_be_trained_with(
    make_table: Callable[..., CostTable],
) -> None:
    table = make_table([(100.0, 1.0, 2.0), (20.0, 1.0, 2.0)] * (E // 2), K)
    for policy in (StaticSet(kept=(0, 1, 2, 3, 4, 6)), CostBias(alpha=1.0, beta=1.0)):
        with torch.inference_mode():
            route(logits_of(0), table=table, gate=GATE, policy=policy)
        logits = logits_of(1).requires_grad_()
        got = route(logits, table=table, gate=GATE, policy=policy)
        got.weights.square().sum().backward()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()
        assert logits.grad.any()
