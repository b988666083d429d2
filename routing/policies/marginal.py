"""Drop, per batch, the experts that cost most per gate mass they carry, by the measured table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from costprof.core.errors import InputError, TableError
from costprof.costmodel.table import CostTable, LayerCost
from costprof.routing.contract import Gate, Rows, Selection, SystemState
from costprof.routing.pruning import (
    ONE,
    drop_ranks,
    gate_shares,
    must_keep,
    pruned,
    refill,
    sum_by_expert,
)

Objective = Literal["latency", "energy", "weighted"]

_CANDIDATE_SETS = 16
"""Sets that are priced, besides plain top-k. Pricing all of up to E would cost E / 16 times as
much, to place the cut more finely than the table's own error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Marginal:
    """Trade gate mass for layer cost, priced by the table.

    A batch wakes the union of its rows' experts; at decode sizes each costs nearly as much for one
    row as for ten. Experts are ordered by the gate mass they carry per cost they add. Prefixes of
    that order are dropped, rows that lose an expert refill in rank order from the experts still
    active (as OEA does, arXiv 2511.02237), and each resulting layer is priced with the table. Of
    those within `budget` the one with the least `mass lost - lam · cost saved` is taken, both as
    shares: of all real rows' gate mass, and of plain top-k's cost. Weights of a changed row are
    scaled so that they sum to what its plain top-k's summed to.

    Promised to every row: it keeps its first expert and at least `q` of its own top-k gate mass
    (what it refills with does not count). The predicted cost is never above plain top-k's.

    Only real decode rows that are alone of their sequence in the batch are changed
    (`Rows.lone_decode`); experts the other rows need stay, and can be refilled from.

    Args:
        lam: Gate mass, as a share, one would give for the layer's whole cost; 0 gives none freely.
        budget: Cost aimed at, as a share of plain top-k's; where the bound `q` forbids reaching
            it, the cheapest set is taken. 1 is no aim.
        q: Share of its gate mass every row keeps, in [0, 1].
        objective: The cost: latency, active energy, or both ("weighted").
        energy_share: Weight of energy in "weighted", in [0, 1]; the rest is latency's.
        prefill: Change all real rows, also those of prompts and speculated tokens. A row's experts
            may then depend on later tokens of its own sequence: not what a causal model computes.

    Raises:
        InputError: a parameter outside its range.
    """

    lam: float = 0.0
    budget: float = 1.0
    q: float = 0.7
    objective: Objective = "latency"
    energy_share: float = 0.5
    prefill: bool = False

    def __post_init__(self) -> None:
        _check("lam", self.lam, 0.0, math.inf)
        _check("budget", self.budget, 0.0, 1.0)
        _check("q", self.q, 0.0, 1.0)
        _check("energy_share", self.energy_share, 0.0, 1.0)
        if self.objective not in ("latency", "energy", "weighted"):
            raise InputError(
                f"objective {self.objective!r} is unknown",
                "the policy cannot be built",
                "use latency, energy or weighted",
            )

    @property
    def neutral(self) -> bool:
        """True where nothing is traded (`lam` 0 and `budget` 1) or may be lost (`q` 1)."""
        return (self.lam == 0.0 and self.budget == 1.0) or self.q == 1.0

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
        """Return the cheapest acceptable selection; `state` and `history` are not read."""
        changeable = rows.real if self.prefill else rows.lone_decode()
        # A row that is not finite must not steer the others.
        changeable = changeable & plain.scores.isfinite().all(dim=-1)
        if not bool(changeable.any()):
            return plain, history
        n_experts, real = table.n_experts, rows.real.unsqueeze(-1)
        counts = sum_by_expert(plain.indices, real.expand_as(plain.indices), n_experts)
        whole = table.layer_cost(counts)
        self._check_price(whole)
        saving = self._relative(table.expert_costs(counts), whole)  # [E]
        share = gate_shares(plain).masked_fill(~changeable.unsqueeze(-1), 0)  # [T, k]
        mass = sum_by_expert(plain.indices, share, n_experts)
        kept = sum_by_expert(plain.indices, must_keep(plain, changeable, rows.real), n_experts)
        price = torch.where((kept == 0) & (saving > 0), mass / saving, torch.inf)
        rank = drop_ranks(price, plain.indices, share, math.floor((1.0 - self.q) * ONE))
        droppable = int((rank < n_experts).sum())
        if droppable == 0:
            return plain, history

        cuts = torch.tensor(_cuts(droppable), device=rank.device)
        gone = rank < cuts.unsqueeze(-1)  # [J, E]
        indices, used = refill(plain, (counts > 0) & ~gone, gone)  # [J, T, k]
        layers = table.layer_cost(sum_by_expert(indices, used & real, n_experts))
        cost = self._relative(layers, whole)  # [J]
        lost = (gone * mass).sum(dim=-1).double() / (ONE * rows.real.sum())
        best = self._best(cost.tolist(), lost.tolist())
        if best == 0:
            return plain, history
        return pruned(plain, indices[best], used[best], gone[best], share), history

    def _relative(self, price: LayerCost, whole: LayerCost) -> Tensor:
        """Cost in shares of `whole`, by the objective."""
        energy = {"latency": 0.0, "energy": 1.0, "weighted": self.energy_share}[self.objective]
        cost = torch.zeros_like(price.latency_us)
        if energy < 1.0:
            cost = cost + (1.0 - energy) * price.latency_us / whole.latency_us
        if energy > 0.0:
            cost = cost + energy * price.energy_mj / whole.energy_mj
        return cost

    def _check_price(self, price: LayerCost) -> None:
        needed = {"latency_us": price.latency_us} if self.objective != "energy" else {}
        if self.objective != "latency":
            needed["energy_mj"] = price.energy_mj
        for name, value in needed.items():
            if not (math.isfinite(float(value)) and float(value) > 0.0):
                raise TableError(
                    f"the table prices this batch at {name} {float(value)}",
                    f"it cannot be routed by {self.objective}",
                    "use another objective or a table that measured it",
                )

    def _best(self, cost: list[float], lost: list[float]) -> int:
        """Index of the set to take; 0 is plain top-k."""
        allowed = [j for j in range(len(cost)) if cost[j] <= cost[0]]
        within = [j for j in allowed if cost[j] <= self.budget]
        if not within and self.budget < 1.0:
            return min(allowed, key=lambda j: (cost[j], lost[j]))
        return min(within or allowed, key=lambda j: lost[j] - self.lam * (1.0 - cost[j]))


def _check(name: str, value: float, low: float, high: float) -> None:
    if not (low <= value <= high and math.isfinite(value)):
        bound = "at least 0" if math.isinf(high) else f"{low:g} … {high:g}"
        raise InputError(f"{name} is {value:g}", "the policy cannot be built", f"use {bound}")


def _cuts(droppable: int) -> list[int]:
    """How many experts each candidate set drops, from none to all that may go."""
    steps = min(droppable, _CANDIDATE_SETS)
    return [round(step * droppable / steps) for step in range(steps + 1)]
