"""Two terms of an objective as the columns of a lookup."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_batches import BALANCED, MIXED, OBJECTIVES, E

from costprof.core.errors import TableError
from costprof.costmodel.table import CostTable
from costprof.routing.objective import Objective
from costprof.routing.price_columns import _KNOWN, price_columns

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def table(make_table: Callable[..., CostTable]) -> CostTable:
    return make_table(MIXED, 4)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 300), min_size=E, max_size=E).map(torch.tensor),
    objective=st.sampled_from([each for each in OBJECTIVES if len(each.weights()) <= 2]),
)
def test_columns_price_as_the_objective_does(
    counts: torch.Tensor, objective: Objective, table: CostTable
) -> None:
    columns = price_columns(objective, table, CPU)
    assert columns is not None
    assert sum(columns.weights) == pytest.approx(1.0)
    if not counts.any():
        return
    weights = torch.tensor(columns.weights, dtype=torch.float64)
    shares = columns.lookup.experts(counts) / columns.lookup.layer(counts)
    torch.testing.assert_close((shares * weights).sum(-1), objective.experts(counts, table))


def test_what_does_not_fit_into_two_columns_has_none(table: CostTable) -> None:
    many = [each for each in OBJECTIVES if len(each.weights()) > 2]
    assert many
    for objective in (*BALANCED, *many):
        assert price_columns(objective, table, CPU) is None


def test_latency_and_energy_are_the_tables_own_columns(table: CostTable) -> None:
    columns = price_columns(Objective(latency=1, energy=3), table, CPU)
    assert columns is not None
    assert torch.equal(columns.lookup.values, table.lookup(CPU).values)
    assert columns.weights == (0.25, 0.75)


def test_columns_are_made_once_and_go_with_their_table(
    make_table: Callable[..., CostTable],
) -> None:
    dropped = make_table(MIXED, 4)
    first, again = (price_columns(Objective(), dropped, CPU) for _ in range(2))
    assert first is not None
    assert again is not None
    assert first.lookup is again.lookup
    del first, again
    remembered = weakref.ref(dropped)
    del dropped
    gc.collect()
    assert remembered() is None


def test_new_weights_make_no_new_columns(make_table: Callable[..., CostTable]) -> None:
    table = make_table(MIXED, 4)
    lookups = set()
    for step in range(1, 400):
        goal = Objective(latency=1.0, energy=step / 400)
        columns = price_columns(goal, table, CPU)
        assert columns is not None
        assert columns.weights == pytest.approx((1 / (1 + step / 400), step / (400 + step)))
        lookups.add(id(columns.lookup))
    assert len(lookups) == 1
    assert len(_KNOWN[table]) == 1


def test_terms_are_checked_whatever_was_asked_for_before(
    make_table: Callable[..., CostTable],
) -> None:
    free = make_table([(100.0, 1.0, 0.0)] * E, 4)
    assert price_columns(Objective(), free, CPU) is not None
    for goal in (Objective(energy=1), Objective(energy=1, memory=1, balance=1)):
        for _ in range(2):
            with pytest.raises(TableError, match="nothing can be routed by energy"):
                price_columns(goal, free, CPU)


@pytest.mark.parametrize("objective", [Objective(), Objective(latency=1, memory=1)])
def test_a_trace_holds_the_columns_made_once(objective: Objective, table: CostTable) -> None:
    def priced(rows: torch.Tensor) -> torch.Tensor:
        columns = price_columns(objective, table, rows.device)
        return columns.lookup.values[rows] * columns.weights[0]

    rows = torch.tensor([2, 3])
    torch.compiler.reset()
    traced = torch.compile(priced, backend="aot_eager", fullgraph=True)(rows)
    assert torch.equal(traced, priced(rows))
