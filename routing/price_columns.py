"""An objective's price of each expert in the two columns that compiled decisions read."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from costprof.costmodel.lookup import COLUMNS, DenseLookup
from costprof.costmodel.table import CostTable
from costprof.routing.objective import Objective

_PRICES = ("latency", "energy")
_KNOWN: WeakKeyDictionary[
    CostTable, dict[tuple[tuple[str, ...], torch.device], DenseLookup | None]
] = WeakKeyDictionary()
"""Lookups by the names of their columns: weights may be new in every batch, names are few."""


class PriceColumns(NamedTuple):
    """Prices of two terms of an objective, and their weights, which add up to 1."""

    lookup: DenseLookup
    weights: tuple[float, float]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def price_columns(
    objective: Objective, table: CostTable, device: torch.device
) -> PriceColumns | None:
    """Return the terms of `objective` as columns on `device`; None where two cannot hold them.

    Heat and stored bytes are functions of an expert's own tokens, as latency and energy are, and
    take a column each. Imbalance is not: it has the whole layer's tokens in it. Checked, made and
    copied once for each table and set of terms, also for the traces of `torch.compile`.

    Raises:
        TableError: `table` does not price `objective`.
    """
    names, weights = _terms(objective)
    known = _KNOWN.get(table)
    if known is None:
        known = _KNOWN.setdefault(table, {})
    key = (names, device)
    if key not in known:
        objective.check(table)
        known[key] = _lookup(table, names, device)
    lookup = known[key]
    return None if lookup is None else PriceColumns(lookup, weights)


@lru_cache(maxsize=256)
def _terms(objective: Objective) -> tuple[tuple[str, ...], tuple[float, float]]:
    """The terms that have weight, and the weights of the first two columns of their lookup."""
    weights = objective.weights()
    if weights.keys() <= set(_PRICES):
        return tuple(weights), (weights.get("latency", 0.0), weights.get("energy", 0.0))
    first, second = (*weights.values(), 0.0)[:2]
    return tuple(weights), (first, second)


def _lookup(table: CostTable, names: tuple[str, ...], device: torch.device) -> DenseLookup | None:
    if "balance" in names or len(names) > len(COLUMNS):
        return None
    both = _PRICES if set(names) <= set(_PRICES) else (*names, *names)[:2]
    return _held(table, both, device)


def _held(table: CostTable, names: tuple[str, ...], device: torch.device) -> DenseLookup:
    """A lookup of `table` with the two terms `names` for columns.

    It shares no tensor with the table: a trace takes it for constants, and may meet the table's own
    tensors elsewhere.
    """
    with torch.inference_mode(False):
        lookup = table.lookup(torch.device("cpu"))
        columns = [_column(table, lookup, name) for name in names]
        values, slope, base = (torch.stack(each, dim=-1) for each in zip(*columns, strict=True))
        index = lookup.class_index.clone()
        return dataclasses.replace(
            lookup, values=values, class_index=index, slope=slope, base=base
        ).to(device)


def _column(table: CostTable, lookup: DenseLookup, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Values [rows], slope [E] and base [] of one term, see `DenseLookup`."""
    if name in _PRICES:
        column = _PRICES.index(name)
        return lookup.values[:, column], lookup.slope[:, column], lookup.base[column]
    constants = table.expert_constants("cpu")
    none = torch.zeros_like(lookup.base[0])
    by_count = lookup.values.view(-1, lookup.n_classes, len(COLUMNS))
    if name == "thermal":
        heat = _by_class(constants.heat_c_per_mj, lookup)
        energy = by_count[..., _PRICES.index("energy")]
        slope = lookup.slope[:, _PRICES.index("energy")] * constants.heat_c_per_mj
        return (energy * heat).flatten(), slope, none
    stored = _by_class(constants.weight_bytes, lookup).expand(by_count.shape[:2]).clone()
    stored[0] = 0.0  # without tokens nothing is read
    return stored.flatten(), torch.zeros_like(lookup.slope[:, 0]), none


def _by_class(of_expert: Tensor, lookup: DenseLookup) -> Tensor:
    """`of_expert` [E], equal within a class, as [C]."""
    return of_expert.new_zeros(lookup.n_classes).scatter_(0, lookup.class_index, of_expert)
