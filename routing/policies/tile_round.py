"""Round what experts get down to whole tiles, where their rows can do without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from costprof.costmodel.table import CostTable
from costprof.routing.contract import Gate, Rows, Selection, SystemState
from costprof.routing.objective import Objective
from costprof.routing.parameters import set_flag, set_number, set_whole
from costprof.routing.pruning import ONE, drop_ranks, gate_shares, sum_by_expert
from costprof.routing.reselection import batch_rows, first_slots, replace

_LATENCY = Objective()


@dataclass(frozen=True, slots=True, kw_only=True)
class TileRound:
    """Experts give up the assignments that begin a tile of `block_m` rows and do not fill it.

    A grouped kernel computes whole tiles, so the last of an expert costs the same for one row as
    for all. Of each expert that can be rounded down, the assignments of least gate mass share go,
    as many as are over; which experts, those rows agree on that lose least per cost saved by the
    table (`drop_ranks`). Slots stay empty. The rounding is SonicMoE's (token rounding), which also
    fills tiles up, in training. Filling up costs mass of other rows' choice and is left out.

    Whom an expert drops depends on all its rows, so only real decode rows alone of their sequence
    are touched; a tile that others need stays. With `prefill` all real rows are: a prompt's token
    may then lose an expert to a later one, which is not what a causal model computes.

    Promised: every row keeps its first expert and at least `q` of its gate mass.

    Args:
        block_m: Rows of a tile, at least 1; 1 changes nothing.
        q: In [0, 1]; 1 changes nothing.
        prefill: Touch all real rows.
        objective: The cost.

    Raises:
        InputError: a parameter outside its range.
    """

    block_m: int = 1
    q: float = 0.9
    prefill: bool = False
    objective: Objective = _LATENCY

    def __post_init__(self) -> None:
        set_whole(self, "block_m", 1)
        set_number(self, "q", 0.0, 1.0)
        set_flag(self, "prefill")

    @property
    def neutral(self) -> bool:
        """True where tiles are rows or nothing may be lost."""
        return self.block_m == 1 or self.q == 1.0

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
        """Return the rounded selection; `state` and `history` are not read.

        Raises:
            TableError: the table does not price the objective.
        """
        self.objective.check(table)
        changeable = batch_rows(plain, rows, prefill=self.prefill).unsqueeze(-1)
        assigned = plain.used & rows.real.unsqueeze(-1)
        counts = sum_by_expert(plain.indices, assigned, table.n_experts)
        over = counts % self.block_m
        share = gate_shares(plain).masked_fill(~changeable, 0)
        loose = changeable & ~first_slots(plain, 1)
        place = _places(plain.indices, share.masked_fill(~loose, 2 * ONE), assigned, counts)
        tail = assigned & (place >= (counts - over)[plain.indices])
        held = sum_by_expert(plain.indices, tail & ~loose, table.n_experts) > 0
        saved = self.objective.saved(counts, counts - over, table)
        at_stake = share * tail
        mass = sum_by_expert(plain.indices, at_stake, table.n_experts)
        rounds = (over > 0) & ~held & (saved > 0)
        price = (mass / saved).masked_fill(~rounds, torch.inf)
        slack = int((1.0 - self.q) * ONE)
        rank = drop_ranks(price, plain.indices, at_stake, slack)
        return replace(plain, tail & (rank < table.n_experts)[plain.indices]), history


def _places(indices: Tensor, key: Tensor, assigned: Tensor, counts: Tensor) -> Tensor:
    """Place [T, k] of each assigned slot among those of its expert, largest `key` first."""
    n_experts = counts.numel()
    expert = indices.masked_fill(~assigned, n_experts).flatten()  # what is not assigned comes last
    by_key = key.flatten().argsort(descending=True, stable=True)
    order = by_key[expert[by_key].argsort(stable=True)]
    starts = torch.cat([counts.cumsum(0) - counts, counts.sum().unsqueeze(0)])
    within = torch.arange(order.numel(), device=order.device) - starts[expert[order]]
    return torch.empty_like(within).scatter_(0, order, within).view_as(indices)
