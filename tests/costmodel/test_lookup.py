"""The dense lookup against the curves it was laid out from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from costprof.costmodel.curves import read_classes
from costprof.costmodel.lookup import DenseLookup, build_lookup
from costprof.costmodel.manifest import Composition
from costprof.costmodel.rows import TableRow, rows_table

E = 9


@pytest.fixture
def classes_of(rows: list[TableRow]) -> tuple[str, ...]:
    small, large = rows[0].class_id, rows[-1].class_id
    return tuple(large if expert % 3 else small for expert in range(E))


@pytest.fixture
def compositions(rows: list[TableRow]) -> dict[str, Composition]:
    return {
        rows[0].class_id: Composition(base_us=3.3, latency_scale=0.7, base_mj=1.1),
        rows[-1].class_id: Composition(base_us=2.1, latency_scale=0.9, energy_scale=1.3),
    }


@pytest.fixture
def lookup(
    rows: list[TableRow], classes_of: tuple[str, ...], compositions: dict[str, Composition]
) -> DenseLookup:
    return build_lookup(read_classes(rows_table(rows), classes_of), classes_of, compositions)


@pytest.fixture
def by_hand(
    rows: list[TableRow], classes_of: tuple[str, ...], compositions: dict[str, Composition]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what prices counts [n, E] expert by expert from the curves: [n, E, 2]."""
    classes = read_classes(rows_table(rows), classes_of)
    last = max(curves.max_tokens for curves in classes.values()) + 1
    prices = []
    for name in classes_of:
        parts = compositions[name]
        scale = torch.tensor([parts.latency_scale, parts.energy_scale], dtype=torch.float64)
        prices.append(torch.from_numpy(classes[name].dense(last)) * scale)

    def price(counts: torch.Tensor) -> torch.Tensor:
        found = torch.zeros(*counts.shape, 2, dtype=torch.float64)
        for at, row in enumerate(counts.tolist()):
            for expert, count in enumerate(row):
                dense = prices[expert]
                within = min(max(count, 0), last)
                found[at, expert] = dense[within]
                if count > last:
                    found[at, expert] += (count - last) * (dense[-1] - dense[-2])
        return found

    return price


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("largest", [5, 33, 34, 120])
def test_it_is_what_the_curves_say_to_the_last_bit(
    lookup: DenseLookup,
    by_hand: Callable[[torch.Tensor], torch.Tensor],
    dtype: torch.dtype,
    largest: int,
) -> None:
    draw = torch.Generator().manual_seed(largest)
    counts = torch.randint(0, largest + 1, (7, E), generator=draw, dtype=dtype)
    expected = by_hand(counts)
    assert torch.equal(lookup.experts(counts), expected)
    assert torch.equal(lookup.layer(counts), expected.sum(-2) + lookup.base)
    for one in range(len(counts)):
        assert torch.equal(lookup.experts(counts[one]), expected[one])
    shaped = counts.reshape(7, 1, E)
    assert lookup.layer(shaped).shape == (7, 1, 2)


def test_negative_counts_cost_nothing(
    lookup: DenseLookup, by_hand: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    counts = torch.tensor([[-1, 3, -500, 0, 8, 2, 1, -(2**40), 2**40]])
    assert torch.equal(lookup.experts(counts), by_hand(counts))
    assert lookup.experts(counts)[0, 2].tolist() == [0.0, 0.0]


def test_no_layers_cost_nothing_and_no_expert_only_the_base(lookup: DenseLookup) -> None:
    assert lookup.layer(torch.zeros(0, E, dtype=torch.int64)).shape == (0, 2)
    assert torch.equal(lookup.layer(torch.zeros(E, dtype=torch.int64)), lookup.base)
