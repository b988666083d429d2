"""Share the experts of most gate mass among a batch, so many and no more (XShare)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from costprof.costmodel.table import CostTable
from costprof.routing.contract import Gate, Rows, Selection, SystemState
from costprof.routing.parameters import set_whole
from costprof.routing.pruning import gate_shares, sum_by_expert
from costprof.routing.reselection import batch_rows, first_slots, restrict, wanted_by


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The batch wakes the `experts` that carry most gate mass, and what its rows are promised.

    The sum of gate mass over a set of experts is largest for the greedy choice, as it is modular
    (XShare, arXiv 2602.07265, whose warm-up likewise puts each token's best in first). Where we
    differ: an expert's mass is its share in the top-k of the rows that chose it, not the sum of
    all scores, so no expert wakes that plain top-k leaves asleep; only real decode rows alone of
    their sequence are changed, the experts of others stay; expert-parallel placement and the
    hierarchy for speculated tokens are left out.

    Promised: every row keeps its first `keep` experts, if need be beyond the budget.

    Args:
        experts: How many may be awake, at least 1; None changes nothing.
        keep: At least 1.

    Raises:
        InputError: a parameter outside its range.
    """

    experts: int | None = None
    keep: int = 1

    def __post_init__(self) -> None:
        set_whole(self, "experts", 1, optional=True)
        set_whole(self, "keep", 1)

    @property
    def neutral(self) -> bool:
        """True without a number of experts."""
        return self.experts is None

    def choose(
        self,
        plain: Selection,
        *,
        table: CostTable,
        state: SystemState,
        rows: Rows,
        gate: Gate,
        history: Any,
    ) -> tuple[Selection, Any]:
        """Return the selection from the greedy set; only `rows` are read."""
        if self.experts is None or self.experts >= table.n_experts:
            return plain, history
        changeable = batch_rows(plain, rows)
        keeps = first_slots(plain, self.keep) | ~changeable.unsqueeze(-1)
        promised = wanted_by(plain, keeps & rows.real.unsqueeze(-1))
        share = gate_shares(plain).masked_fill(~changeable.unsqueeze(-1), 0)
        mass = sum_by_expert(plain.indices, share, table.n_experts)
        most = torch.iinfo(torch.int64).max
        rank = mass.masked_fill(promised, most).argsort(descending=True, stable=True).argsort()
        return restrict(plain, promised | ((rank < self.experts) & (mass > 0)), changeable), history
