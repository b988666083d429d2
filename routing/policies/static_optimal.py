"""One set of experts for a whole workload, chosen from its recorded logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from costprof.core.errors import InputError
from costprof.costmodel.table import CostTable
from costprof.routing.contract import Gate, Rows, Selection, SystemState
from costprof.routing.gate import select
from costprof.routing.objective import Objective
from costprof.routing.parameters import check_experts, check_number
from costprof.routing.pruning import ONE, gate_shares, sum_by_expert
from costprof.routing.reselection import close, expert_mask, finite_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticSet:
    """Rows choose among the experts `kept`; see `static_optimal`, which chooses those.

    A row is routed by itself, so rows of prompts are changed too. Promised: no other expert is
    used.

    Args:
        kept: Numbers of the experts, at least one; None keeps all and changes nothing.

    Raises:
        InputError: a parameter outside its range.
    """

    kept: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.kept is not None:
            check_experts("kept", self.kept)
            if not self.kept:
                raise InputError("kept names no expert", "no row can be routed", "keep one")

    @property
    def neutral(self) -> bool:
        """True where all are kept."""
        return self.kept is None

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
        """Return the selection among the kept; only `rows` are read.

        Raises:
            InputError: a kept expert does not exist.
        """
        if self.kept is None:
            return plain, history
        closed = ~expert_mask(self.kept, table.n_experts, plain.scores.device)
        return close(plain, closed, finite_rows(plain, rows.real), gate), history


def static_optimal(
    batches: Sequence[Tensor],
    *,
    table: CostTable,
    gate: Gate,
    mass_lost: float,
    objective: Objective | None = None,
) -> StaticSet:
    """Return the set of experts that serves `batches` at least cost, within a bound on mass lost.

    What a fixed set can do for a workload known in advance, and so a mark for policies that decide
    as they go. Experts are closed one by one, each time the one with the least gate mass (of plain
    top-k, over all rows) per cost it adds to the batches as they are routed then; of the sets met
    on the way within the bound the cheapest is taken. The best of all 2^E sets can be cheaper.

    Args:
        batches: Router logits [T, E] of each batch of the workload; every row is real.
        mass_lost: Share of all rows' gate mass that may be lost, in [0, 1].
        objective: The cost, by default latency.

    Raises:
        InputError: no batches, or a bound outside its range.
        TableError: the table does not price the objective.
    """
    check_number("mass_lost", mass_lost, 0.0, 1.0, consequence="no set was chosen")
    if not batches:
        raise InputError("there are no batches", "no set was chosen", "record some logits")
    goal = Objective() if objective is None else objective
    goal.check(table)
    chosen = [select(logits, gate) for logits in batches]
    n_experts = table.n_experts
    masses = [sum_by_expert(each.indices, gate_shares(each), n_experts) for each in chosen]
    mass = torch.stack(masses).sum(0)
    whole = [_counts(each, n_experts) for each in chosen]
    closed = torch.zeros(n_experts, dtype=torch.bool, device=mass.device)
    rows = sum(each.indices.shape[0] for each in chosen)
    bound = mass_lost * rows * ONE
    best, least_cost = closed, float(len(batches))
    counts = whole
    for _ in range(n_experts - gate.top_k):
        adds = torch.stack([goal.experts(each, table) for each in counts]).sum(0)
        too_much = (mass + mass[closed].sum()).double() > bound
        price = torch.where(closed | too_much, torch.inf, mass / adds.clamp_min(1e-12))
        if not bool(torch.isfinite(price).any()):
            break
        closed = closed | (torch.arange(n_experts, device=mass.device) == price.argmin())
        moved = [close(each, closed, _all(each), gate) for each in chosen]
        counts = [_counts(each, n_experts) for each in moved]
        costs = [
            goal.layer(each, table, plain=plain) for each, plain in zip(counts, whole, strict=True)
        ]
        cost = float(torch.stack(costs).sum())
        if cost <= least_cost:
            best, least_cost = closed, cost
    if not bool(best.any()):
        return StaticSet()
    return StaticSet(kept=tuple((~best).nonzero().flatten().tolist()))


def _all(selection: Selection) -> Tensor:
    return selection.scores.isfinite().all(dim=-1)


def _counts(selection: Selection, n_experts: int) -> Tensor:
    return sum_by_expert(selection.indices, selection.used, n_experts)
