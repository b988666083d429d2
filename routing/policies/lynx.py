"""Remap a batch's low-affinity assignments away from its least used experts (Lynx)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from costprof.costmodel.table import CostTable
from costprof.routing.contract import Gate, Rows, Selection, SystemState
from costprof.routing.parameters import set_number
from costprof.routing.pruning import ONE, gate_shares, sum_by_expert
from costprof.routing.reselection import batch_rows, first_slots, restrict, wanted_by


@dataclass(frozen=True, slots=True, kw_only=True)
class Lynx:
    """The least popular experts of a batch go, if only low-affinity assignments held them.

    An assignment is of low affinity where it is not its row's first and has less than `affinity`
    of the row's gate mass. Experts that nothing else holds are dropped, the one with the fewest
    assignments first, until `drop` of the active ones are gone; their rows take the next expert of
    their ranking that is left. The idea is Lynx's (arXiv 2411.08982): batches use experts
    unevenly, and confident assignments must stay. Where we differ: one threshold on a row's own
    share stands for its bins of affinity, which are set per model; only real decode rows alone of
    their sequence are changed.

    Promised: every row keeps its first expert, and every expert of at least `affinity` of its
    gate mass.

    Args:
        drop: Share of the batch's active experts that may go, in [0, 1]; 0 changes nothing.
        affinity: In [0, 1]; 0 changes nothing.

    Raises:
        InputError: a parameter outside its range.
    """

    drop: float = 0.0
    affinity: float = 0.15

    def __post_init__(self) -> None:
        set_number(self, "drop", 0.0, 1.0)
        set_number(self, "affinity", 0.0, 1.0)

    @property
    def neutral(self) -> bool:
        """True where no expert, or no assignment, may go."""
        return self.drop == 0.0 or self.affinity == 0.0

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
        """Return the remapped selection; only `rows` are read."""
        changeable, real = batch_rows(plain, rows), rows.real.unsqueeze(-1)
        firm = first_slots(plain, 1) | (gate_shares(plain) >= int(self.affinity * ONE))
        stays = wanted_by(plain, real & (firm | ~changeable.unsqueeze(-1)))
        counts = sum_by_expert(plain.indices, real.expand_as(firm), table.n_experts)
        active = counts > 0
        key = counts.masked_fill(stays | ~active, torch.iinfo(torch.int64).max)
        rank = key.argsort(stable=True).argsort()
        gone = active & ~stays & (rank < (self.drop * active.sum()).long())
        return restrict(plain, active & ~gone, changeable), history
