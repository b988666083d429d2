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
    rows: Sequence[Rows] | None = None,
) -> StaticSet:
    """Return the set of experts that serves `batches` at least cost, within a bound on mass lost.

    What a fixed set can do for a workload known in advance, and so a mark for policies that decide
    as they go. Experts are closed one by one, each time the one with the least gate mass (of plain
    top-k, over all real rows) per cost it adds to the batches as they are routed then; of the sets
    met on the way within the bound the cheapest is taken. The best of all 2^E sets can be cheaper.

    Args:
        batches: Router logits [T, E] of each batch of the workload.
        mass_lost: Share of all real rows' gate mass that may be lost, in [0, 1].
        objective: The cost, by default latency.
        rows: What the rows of each batch are; None: all are real. A row that is not finite keeps
            its top-k and has no mass.

    Raises:
        InputError: no batches or no real rows, rows of other batches, or a bound outside its range.
        TableError: the table does not price the objective.
    """
    check_number("mass_lost", mass_lost, 0.0, 1.0, consequence="no set was chosen")
    if not batches:
        raise InputError("there are no batches", "no set was chosen", "record some logits")
    goal = Objective() if objective is None else objective
    goal.check(table)
    chosen = [select(logits, gate) for logits in batches]
    n_experts = table.n_experts
    real = _real_rows(batches, rows)
    able = [finite_rows(each, mine) for each, mine in zip(chosen, real, strict=True)]
    n_rows = sum(int(mine.sum()) for mine in able)
    if n_rows == 0:
        raise InputError("no batch has a real row", "no set was chosen", "record some logits")
    masses = [
        sum_by_expert(each.indices, gate_shares(each).masked_fill(~mine, 0), n_experts)
        for each, mine in zip(chosen, (mine.unsqueeze(-1) for mine in able), strict=True)
    ]
    mass = torch.stack(masses).sum(0)
    whole = [_counts(each, mine, n_experts) for each, mine in zip(chosen, real, strict=True)]
    closed = torch.zeros(n_experts, dtype=torch.bool, device=mass.device)
    bound = mass_lost * n_rows * ONE
    counts = whole
    best, least_cost = closed, _cost(whole, whole, table, goal)
    for _ in range(n_experts - gate.top_k):
        adds = torch.stack([goal.experts(each, table) for each in counts]).sum(0)
        too_much = (mass + mass[closed].sum()).double() > bound
        price = torch.where(closed | too_much, torch.inf, mass / adds.clamp_min(1e-12))
        if not bool(torch.isfinite(price).any()):
            break
        closed = closed | (torch.arange(n_experts, device=mass.device) == price.argmin())
        moved = [close(each, closed, mine, gate) for each, mine in zip(chosen, able, strict=True)]
        counts = [_counts(each, mine, n_experts) for each, mine in zip(moved, real, strict=True)]
        cost = _cost(counts, whole, table, goal)
        if cost <= least_cost:
            best, least_cost = closed, cost
    if not bool(best.any()):
        return StaticSet()
    return StaticSet(kept=tuple((~best).nonzero().flatten().tolist()))


def _real_rows(batches: Sequence[Tensor], rows: Sequence[Rows] | None) -> list[Tensor]:
    """Which rows of each batch are real, [T] bool."""
    if rows is None:
        return [torch.ones(len(each), dtype=torch.bool, device=each.device) for each in batches]
    if [len(each.real) for each in rows] != [len(each) for each in batches]:
        raise InputError(
            "rows do not describe the batches", "no set was chosen", "describe each row once"
        )
    return [each.real for each in rows]


def _cost(
    counts: Sequence[Tensor], whole: Sequence[Tensor], table: CostTable, goal: Objective
) -> float:
    """Cost of all batches of `counts` [E], each as a share of that of its `whole` [E]."""
    pairs = zip(counts, whole, strict=True)
    return float(torch.stack([goal.layer(each, table, plain=plain) for each, plain in pairs]).sum())


def _counts(selection: Selection, real: Tensor, n_experts: int) -> Tensor:
    return sum_by_expert(selection.indices, selection.used & real.unsqueeze(-1), n_experts)
