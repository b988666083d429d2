"""Which tile config a table chooses: by latency, by energy, and only where it was measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from costprof.core.errors import InputError
from costprof.core.expert import ExpertClass, Kernel
from costprof.costmodel.config_choice import DENSE_TOKENS, bucket_tokens
from costprof.costmodel.manifest import Manifest, MoeSpec
from costprof.costmodel.rows import TableRow, rows_table
from costprof.costmodel.table import CostTable

EXPERT = ExpertClass(d_model=64, d_ff=128, dtype="float32")
KERNEL = Kernel(name="kernels:tiled")


def row(
    config: dict[str, int], tokens: int, us: float, mj: float, tier: str = "measured"
) -> TableRow:
    return TableRow(
        expert=EXPERT,
        kernel=dataclasses.replace(KERNEL, config=config),
        tokens=tokens,
        latency_us=(us, us, us),
        energy_mj=(mj, mj, mj),
        power_w=1.0,
        temp_rise_c=0.0,
        tier=tier,  # type: ignore[arg-type]
    )


SMALL, LARGE = {"BLOCK_M": 16}, {"BLOCK_M": 128}


@pytest.fixture
def make(make_manifest: Callable[..., Manifest]) -> Callable[[list[TableRow]], CostTable]:
    """Return a maker of one-expert tables of rows."""

    def table(rows: list[TableRow]) -> CostTable:
        moe = MoeSpec(name="one", top_k=1, class_of_expert=(rows[0].class_id,))
        return CostTable(rows_table(rows), make_manifest(moes=(moe,)))

    return table


@pytest.fixture
def crossing(make: Callable[[list[TableRow]], CostTable]) -> CostTable:
    """SMALL takes 1 µs a token, LARGE 40 and 0.2 a token; LARGE takes a fifth of the energy."""
    grid = (1, 16, 64, 256, 4096)
    rows = [row(SMALL, n, float(n), 5.0 * n) for n in grid]
    rows += [row(LARGE, n, 40 + 0.2 * n, 1.0 * n) for n in grid]
    return make(rows)


def test_the_fastest_config_is_chosen_and_is_the_one_that_prices(crossing: CostTable) -> None:
    assert crossing.best_config(0, 1) == SMALL
    assert crossing.best_config(0, 49) == SMALL
    assert crossing.best_config(0, 51) == LARGE
    for tokens in (1, 49, 51, 4096):
        assert crossing.cost(0, tokens).latency_us == pytest.approx(min(tokens, 40 + 0.2 * tokens))


def test_energy_weighs_in_as_far_as_asked(crossing: CostTable) -> None:
    # At 32: 32 against 46.4 µs, a share of 1.45; 160 against 32 mJ, a share of 5.
    assert crossing.best_config(0, 32, energy_weight=0.0) == SMALL
    assert crossing.best_config(0, 32, energy_weight=0.09) == SMALL
    assert crossing.best_config(0, 32, energy_weight=0.11) == LARGE
    assert crossing.best_config(0, 1, energy_weight=1.0) == LARGE
    with pytest.raises(InputError, match=r"energy_weight is 1\.5; no config was chosen; give a"):
        crossing.best_config(0, 32, energy_weight=1.5)
    with pytest.raises(InputError, match="tokens is -1; no config was chosen"):
        crossing.best_config(0, -1)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_the_look_up_says_what_the_table_says(crossing: CostTable, weight: float) -> None:
    choice = crossing.config_choice(0, energy_weight=weight)
    for tokens in range(DENSE_TOKENS + 1):
        assert choice(tokens) == crossing.best_config(0, tokens, energy_weight=weight)
    for index in range(40):
        tokens = bucket_tokens(index)
        expected = crossing.best_config(0, tokens, energy_weight=weight)
        assert choice(tokens) == expected
        assert choice(bucket_tokens(index + 1) - 1) == expected
    assert choice(10**9) == crossing.best_config(0, 10**6, energy_weight=weight)


def test_a_config_does_not_win_by_extrapolation(
    make: Callable[[list[TableRow]], CostTable],
) -> None:
    """LARGE was measured at 64 alone; what the fit says of it at 4 is better than all measured."""
    table = make(
        [
            row(SMALL, 4, 10.0, 1.0),
            row(SMALL, 64, 90.0, 1.0),
            row(LARGE, 4, 2.0, 1.0, "extrapolated"),
            row(LARGE, 64, 60.0, 1.0),
            row(LARGE, 256, 99.0, 1.0, "extrapolated"),
        ]
    )
    assert table.best_config(0, 4) == SMALL
    assert table.best_config(0, 2) == SMALL
    assert table.best_config(0, 12) == SMALL  # nearer to 4, where SMALL is the best
    assert table.best_config(0, 20) == LARGE  # nearer to 64, whose best was not measured at 4
    assert table.best_config(0, 1000) == LARGE
    assert table.cost(0, 4).latency_us == 10.0


def test_configs_measured_on_both_sides_compete_between(
    make: Callable[[list[TableRow]], CostTable],
) -> None:
    table = make(
        [
            *(row(SMALL, n, us, 1.0) for n, us in ((4, 10.0), (64, 70.0))),
            *(row(LARGE, n, us, 1.0) for n, us in ((4, 30.0), (64, 40.0))),
        ]
    )
    # The lines cross at 4 + 60 · 20 / 50 = 28 tokens, though 16 is the middle by ratio.
    assert table.best_config(0, 27) == SMALL
    assert table.best_config(0, 29) == LARGE


def test_a_class_without_tiles_has_an_empty_config(
    rows: list[TableRow], make_manifest: Callable[..., Manifest]
) -> None:
    table = CostTable(rows_table(rows), make_manifest())
    assert table.best_config(0, 5) == {}
    assert table.config_choice(0)(5) == {}
    assert table.kernel_name(0) == "kernels:expert"
