"""Prefer experts that are resident, by their logits' own range (Cache-Prior)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from costprof.costmodel.table import CostTable
from costprof.routing.contract import Gate, Rows, Selection, SystemState
from costprof.routing.gate import gate_logits
from costprof.routing.history import Resident, known
from costprof.routing.parameters import set_number, set_whole
from costprof.routing.pruning import sum_by_expert
from costprof.routing.reselection import finite_rows, first_slots, rerank, shifted_ranking

_UNITS = 1 << 20
_MOST_RANGE = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePrior:
    """Logits of resident experts are raised by `lam` times the running mean range of logits.

    That is Cache-Prior (arXiv 2412.00099), for weights that do not all fit into fast memory. The
    history says which experts are resident; by default those that the batch before used. A caller
    that knows better, such as one with a cache of some size, gives its own `Resident`. A row's
    first `top_j` experts are untouched; weights are those of plain scores.

    A row's experts depend on batches before, not on companions, so rows of prompts are changed
    too. Promised: every row keeps its first `top_j` experts.

    Args:
        lam: At least 0; 0 changes nothing.
        top_j: At least 1.

    Raises:
        InputError: a parameter outside its range.
    """

    lam: float = 0.0
    top_j: int = 1

    def __post_init__(self) -> None:
        set_number(self, "lam")
        set_whole(self, "top_j", 1)

    @property
    def neutral(self) -> bool:
        """True where residence counts for nothing."""
        return self.lam == 0.0

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
        """Return the selection by the raised logits, and what is resident after it.

        Raises:
            InputError: the history is another policy's or another layer's.
        """
        before = known(history, Resident, table.n_experts)
        usable = finite_rows(plain, rows.real)
        ranges = _range_sum(plain, usable, gate)
        chosen = plain
        if before is not None:
            mean = before.range_sum.double() / before.rows.clamp_min(1) / _UNITS
            ranking = shifted_ranking(plain, self.lam * mean * before.experts, gate)
            kept = torch.zeros_like(ranking, dtype=torch.bool)
            kept.scatter_(-1, plain.indices, first_slots(plain, self.top_j))
            chosen = rerank(plain, ranking.masked_fill(kept, torch.inf), usable)
            ranges = (before.range_sum + ranges[0], before.rows + ranges[1])
        used = chosen.used & rows.real.unsqueeze(-1)
        awake = sum_by_expert(chosen.indices, used, table.n_experts) > 0
        return chosen, Resident(experts=awake, range_sum=ranges[0], rows=ranges[1])


def _range_sum(plain: Selection, usable: Tensor, gate: Gate) -> tuple[Tensor, Tensor]:
    """Sum of the logit ranges of `usable` rows, in fixed point, and how many rows those are.

    Whole numbers, so that neither padding nor the order of rows can change the sum.
    """
    low, high = gate_logits(plain.scores, gate).aminmax(dim=-1)
    ranges = (high - low).nan_to_num(0.0).clamp(max=_MOST_RANGE).double() * _UNITS
    return (ranges.long() * usable).sum(), usable.sum()
