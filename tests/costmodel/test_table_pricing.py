"""What a table answers: experts, layers and the differentiable layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from costprof.core.errors import InputError, TableError
from costprof.costmodel.manifest import Composition, Manifest, MoeSpec
from costprof.costmodel.rows import TableRow, Tier, rows_table
from costprof.costmodel.table import CostTable

keep_fixtures = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50
)


@pytest.fixture
def table(rows: list[TableRow], make_manifest: Callable[..., Manifest]) -> CostTable:
    return CostTable(rows_table(rows), make_manifest())


@pytest.fixture
def composed(rows: list[TableRow], make_manifest: Callable[..., Manifest]) -> CostTable:
    compositions = {
        rows[0].class_id: Composition(base_us=7.0, latency_scale=0.5, base_mj=3.0, energy_scale=2),
        rows[-1].class_id: Composition(base_us=5.0, latency_scale=0.25, base_mj=4.0),
    }
    return CostTable(rows_table(rows), make_manifest(compositions))


def naive_layer_us(table: CostTable, counts: list[int]) -> float:
    """Price a layer expert by expert."""
    total, bases = 0.0, []
    for expert, count in enumerate(counts):
        parts = table.manifest.compositions.get(table.moe.class_of_expert[expert], Composition())
        bases.append(parts.base_us)
        total += parts.latency_scale * table.cost(expert, count).latency_us
    return total + max(bases)


def test_measured_tokens_return_their_row(table: CostTable) -> None:
    cost = table.cost(1, 6)
    assert (cost.latency_us_p05, cost.latency_us, cost.latency_us_p95) == pytest.approx(
        (14.4, 16.0, 19.2)
    )
    assert (cost.energy_mj_p05, cost.energy_mj, cost.energy_mj_p95) == pytest.approx(
        (28.8, 32.0, 38.4)
    )
    assert (cost.tier, cost.energy_source, cost.power_w) == ("measured", "modelled", 20.0)


def test_a_price_is_never_called_better_founded_than_the_rows_it_comes_from(
    rows: list[TableRow], make_manifest: Callable[..., Manifest]
) -> None:
    def tiers(*of_rows: Tier) -> list[str]:
        kept = [
            dataclasses.replace(row, tier=tier)
            for row, tier in zip(
                (row for row in rows if row.tokens in (2, 8)), of_rows, strict=True
            )
        ]
        table = CostTable(rows_table(kept), make_manifest())
        return [table.cost(1, tokens).tier for tokens in (1, 2, 4, 8, 99)]

    two = ("measured", "measured")
    assert tiers("measured", "measured", *two) == [
        "extrapolated",
        "measured",
        "interpolated",
        "measured",
        "extrapolated",
    ]
    assert tiers("predicted", "predicted", *two) == ["predicted"] * 5
    assert tiers("transferred", "predicted", *two) == [
        *["transferred"] * 3,
        *["predicted"] * 2,
    ]


def test_between_and_beyond_rows_the_price_is_linear_and_says_so(table: CostTable) -> None:
    between, beyond = table.cost(0, 12), table.cost(0, 1000)
    assert (between.latency_us, between.tier) == (pytest.approx(88.0), "interpolated")
    assert (beyond.latency_us, beyond.tier) == (pytest.approx(4040.0), "extrapolated")
    assert beyond.power_w == 20.0
    assert beyond.flops == pytest.approx(table.cost(0, 1).flops * 1000)


def test_no_tokens_cost_nothing(table: CostTable) -> None:
    assert (table.cost(0, 0).latency_us, table.cost(0, 0).bytes) == (0.0, 0.0)


def test_below_the_first_row_the_price_is_held(
    rows: list[TableRow], make_manifest: Callable[..., Manifest]
) -> None:
    table = CostTable(rows_table(row for row in rows if row.tokens >= 4), make_manifest())
    assert table.cost(1, 2).latency_us == table.cost(1, 4).latency_us == pytest.approx(14.0)
    assert table.cost(1, 2).tier == "extrapolated"


def test_the_cheapest_config_prices(
    rows: list[TableRow], make_manifest: Callable[..., Manifest]
) -> None:
    def other(row: TableRow, factor: float) -> TableRow:
        return TableRow(
            expert=row.expert,
            kernel=type(row.kernel)(name=row.kernel.name, framework=row.kernel.framework,
                                    config={"BLOCK_M": 64}),
            tokens=row.tokens,
            latency_us=(factor, factor, factor),
            energy_mj=(1.0, 1.0, 1.0),
        )  # fmt: skip

    flat = [other(row, 15.0) for row in rows if row.expert == rows[0].expert]
    table = CostTable(rows_table([*rows, *flat]), make_manifest())
    assert table.cost(1, 2).latency_us == pytest.approx(12.0)
    assert table.cost(1, 32).latency_us == pytest.approx(15.0)
    layer = table.layer_cost(torch.tensor([0, 2, 32, 0]))
    assert layer.latency_us.item() == pytest.approx(27.0)
    assert layer.energy_mj.item() == pytest.approx(24.0 + 1.0)


@keep_fixtures
@given(counts=st.lists(st.integers(0, 40), min_size=4, max_size=4))
def test_layer_cost_is_the_sum_over_experts(composed: CostTable, counts: list[int]) -> None:
    layer = composed.layer_cost(torch.tensor(counts))
    assert layer.latency_us.item() == pytest.approx(naive_layer_us(composed, counts))


@keep_fixtures
@given(
    counts=st.lists(st.lists(st.integers(0, 90), min_size=4, max_size=4), min_size=0, max_size=3)
)
def test_expected_cost_equals_layer_cost_at_whole_counts(
    composed: CostTable, counts: list[list[int]]
) -> None:
    whole = torch.tensor(counts, dtype=torch.int64).reshape(-1, 4)
    layer = composed.layer_cost(whole)
    expected = composed.expected_layer_cost(whole.double())
    torch.testing.assert_close(expected.latency_us, layer.latency_us)
    torch.testing.assert_close(expected.energy_mj, layer.energy_mj)
    assert layer.latency_us.shape == (len(counts),)


def test_expected_cost_is_linear_between_whole_counts(table: CostTable) -> None:
    def price(count: float) -> float:
        counts = torch.tensor([0.0, count, 0.0, 0.0], dtype=torch.float64)
        return table.expected_layer_cost(counts).latency_us.item()

    assert price(0.5) == pytest.approx(0.5 * price(1.0))
    assert price(4.25) == pytest.approx(0.75 * price(4.0) + 0.25 * price(5.0))


def test_expected_cost_has_the_gradient_of_finite_differences(composed: CostTable) -> None:
    counts = torch.tensor(
        [[0.3, 1.5, 7.2, 100.4], [2.5, 0.1, 31.5, 33.4]], dtype=torch.float64, requires_grad=True
    )

    def both(x: torch.Tensor) -> torch.Tensor:
        cost = composed.expected_layer_cost(x)
        return torch.stack([cost.latency_us, cost.energy_mj])

    assert torch.autograd.gradcheck(both, (counts,))


def test_gradient_is_the_price_of_one_more_token(table: CostTable) -> None:
    counts = torch.tensor([3.0, 0.0, 5.0, 0.0], requires_grad=True)
    table.expected_layer_cost(counts).latency_us.backward()
    assert counts.grad is not None
    marginal = [
        table.cost(e, n + 1).latency_us - table.cost(e, n).latency_us
        for e, n in enumerate((3, 0, 5, 0))
    ]
    assert counts.grad.tolist() == pytest.approx(marginal)


def test_expert_costs_are_zero_where_no_token_goes(composed: CostTable) -> None:
    costs = composed.expert_costs(torch.tensor([[0, 3, 0, 500]], dtype=torch.int32))
    assert costs.latency_us.shape == (1, 4)
    assert costs.latency_us[0, 0] == costs.latency_us[0, 2] == 0
    assert costs.latency_us[0, 1].item() == pytest.approx(0.5 * 13.0)
    assert costs.energy_mj[0, 3].item() == pytest.approx(2 * (40 + 4 * 500))


def test_counts_of_another_shape_or_kind_are_refused(table: CostTable) -> None:
    with pytest.raises(InputError, match=r"counts have shape \(3,\); they do not fit the 4 exp"):
        table.layer_cost(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(InputError, match=r"counts are torch.float32; .*give integers here"):
        table.layer_cost(torch.zeros(4))
    with pytest.raises(InputError, match=r"counts are torch.int64; .*floating-point numbers here"):
        table.expected_layer_cost(torch.zeros(4, dtype=torch.int64))


def test_experts_and_tokens_out_of_range_are_refused(table: CostTable) -> None:
    with pytest.raises(InputError, match=r"expert 4 of 4; .*use 0 … 3"):
        table.cost(4, 1)
    with pytest.raises(InputError, match=r"tokens is -1; nothing was priced"):
        table.cost(0, -1)


def test_weights_are_counted_per_expert(table: CostTable) -> None:
    small, large = 3 * 64 * 128 * 4, 3 * 64 * 512 * 4
    assert table.expert_weight_bytes.tolist() == [large, small, small, large]
    assert table.expert_class(1).d_ff == 128


def test_an_unknown_or_unnamed_moe_is_refused(
    rows: list[TableRow], make_manifest: Callable[..., Manifest]
) -> None:
    one = MoeSpec(name="one", top_k=1, class_of_expert=(rows[0].class_id,))
    two = MoeSpec(name="two", top_k=1, class_of_expert=(rows[-1].class_id,))
    made = rows_table(rows)
    assert CostTable(made, make_manifest(moes=(one, two)), moe="two").expert_class(0).d_ff == 512
    with pytest.raises(TableError, match=r"prices 2 MoEs \(one, two\) and none was named"):
        CostTable(made, make_manifest(moes=(one, two)))
    with pytest.raises(TableError, match=r"the table has no MoE 'three'; .*it prices: one, two"):
        CostTable(made, make_manifest(moes=(one, two)), moe="three")
    missing = MoeSpec(name="one", top_k=1, class_of_expert=("0" * 16,))
    with pytest.raises(TableError, match="no rows of class 0000000000000000; an expert"):
        CostTable(made, make_manifest(moes=(missing,)))
