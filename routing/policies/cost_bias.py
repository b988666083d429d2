"""Subtract what an expert costs from its logit: for experts that cost differently."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from costprof.costmodel.table import CostTable
from costprof.routing.contract import Gate, Rows, Selection, SystemState
from costprof.routing.objective import expert_constants
from costprof.routing.parameters import set_number, set_whole
from costprof.routing.reselection import finite_rows, rerank, shifted_ranking


@dataclass(frozen=True, slots=True, kw_only=True)
class CostBias:
    """Each row chooses by `logits - alpha · energy - beta · thermal`, weighted by plain scores.

    Energy and heat of an expert are the table's for one run of `tokens` tokens, as shares of the
    mean expert's. A constant added to all logits changes no choice, so this does nothing where all
    experts cost the same. It acts on experts that differ: precision, width, placement. It does not
    see which experts are awake anyway. The gate's bias and groups apply to the shifted scores.

    A row is routed by itself, so rows of prompts are changed too. Nothing is promised: how much
    gate mass is lost is bounded by the size of `alpha` and `beta` alone.

    Args:
        alpha: Logits per mean energy of an expert, at least 0.
        beta: Logits per mean heat of an expert, at least 0.
        tokens: Of the run that is priced, at least 1.

    Raises:
        InputError: a parameter outside its range.
    """

    alpha: float = 0.0
    beta: float = 0.0
    tokens: int = 1

    def __post_init__(self) -> None:
        set_number(self, "alpha")
        set_number(self, "beta")
        set_whole(self, "tokens", 1)

    @property
    def neutral(self) -> bool:
        """True where neither energy nor heat counts."""
        return self.alpha == 0.0 and self.beta == 0.0

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
        """Return the selection by the shifted logits; `state` and `history` are not read."""
        shift = -self.cost(table, plain.scores.device)
        ranking = shifted_ranking(plain, shift, gate)
        return rerank(plain, ranking, finite_rows(plain, rows.real)), history

    def cost(self, table: CostTable, device: torch.device) -> Tensor:
        """What is subtracted from each logit, [E] float64; 0 for what the table does not know."""
        tokens = torch.full((table.n_experts,), self.tokens, device=device)
        energy = table.expert_costs(tokens).energy_mj
        heat = energy * expert_constants(table, device).heat_c_per_mj
        return (self.alpha * _of_mean(energy) + self.beta * _of_mean(heat)).nan_to_num(0.0)


def _of_mean(value: Tensor) -> Tensor:
    mean = value.mean()
    return torch.where(mean > 0, value / mean, torch.zeros_like(value))
