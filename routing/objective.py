"""What is to be saved: latency, energy, heat, memory traffic and imbalance as one number.

E is experts.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from costprof.core.errors import TableError
from costprof.costmodel.table import CostTable
from costprof.routing.parameters import check_number


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Weights of what a layer costs. Each term is a share of what plain top-k's layer costs.

    Args:
        latency: Of the layer's predicted µs.
        energy: Of its predicted active mJ.
        thermal: Of the heat of its experts: energy by each one's modelled kelvin per mJ.
        memory: Of the stored bytes of the experts that are awake, which a layer reads.
        balance: Of the imbalance E · Σ n² / (Σ n)² of the tokens n of each expert; 1 is even.

    Raises:
        InputError: a weight below 0, or all of them 0.
    """

    latency: float = 1.0
    energy: float = 0.0
    thermal: float = 0.0
    memory: float = 0.0
    balance: float = 0.0

    def __post_init__(self) -> None:
        for name in ("latency", "energy", "thermal", "memory", "balance"):
            check_number(name, getattr(self, name))
        check_number("the sum of an objective's weights", sum(astuple(self)), 1e-12)

    def check(self, table: CostTable) -> None:
        """Check that `table` prices what has weight, by one token of each expert.

        Looks at the table's own prices on the host: nothing is asked of another device.

        Raises:
            TableError: it does not.
        """
        cost = table.expert_costs(torch.ones(table.n_experts, dtype=torch.int64))
        for name, weight, price in (
            ("latency", self.latency, cost.latency_us),
            ("energy", self.energy + self.thermal, cost.energy_mj),
        ):
            least = float(price.min())
            if weight > 0.0 and not (math.isfinite(least) and least > 0.0):
                raise TableError(
                    f"the table prices an expert at {name} {least:g}",
                    f"it cannot be routed by {name}",
                    "use another objective or a table that measured it",
                )

    def layer(self, counts: Tensor, table: CostTable, *, plain: Tensor) -> Tensor:
        """Cost [...] of layers with token `counts` [..., E], that of `plain` [E] being 1."""
        return self._weighted(_layer_terms(counts, table, self), _layer_terms(plain, table, self))

    def experts(self, counts: Tensor, table: CostTable) -> Tensor:
        """What each expert adds to a layer of `counts` [E], as shares of the layer, [E].

        The shares of all experts add up to less than 1 where the layer itself has a price.
        """
        return self._weighted(_expert_terms(counts, table, self), _layer_terms(counts, table, self))

    def saved(self, counts: Tensor, fewer: Tensor, table: CostTable) -> Tensor:
        """What each expert saves with `fewer` [E] instead of `counts` [E], as shares, [E]."""
        whole = _layer_terms(counts, table, self)
        before = self._weighted(_expert_terms(counts, table, self), whole)
        return before - self._weighted(_expert_terms(fewer, table, self), whole)

    def _weighted(self, terms: dict[str, Tensor], whole: dict[str, Tensor]) -> Tensor:
        """Weighted mean of `terms`, each divided by its value for the `whole` layer."""
        total = sum(astuple(self))
        shares = []
        for name, value in terms.items():
            # An empty layer has no cost, so nothing can be a share of it.
            base = torch.where(whole[name] > 0, whole[name], torch.ones_like(whole[name]))
            shares.append(value * (getattr(self, name) / total) / base)
        return torch.stack(shares).sum(0)


def _expert_terms(counts: Tensor, table: CostTable, weights: Objective) -> dict[str, Tensor]:
    """Each term that has weight, of each expert [..., E]."""
    terms: dict[str, Tensor] = {}
    price = table.expert_costs(counts)
    constants = table.expert_constants(counts.device)
    if weights.latency > 0.0:
        terms["latency"] = price.latency_us
    if weights.energy > 0.0:
        terms["energy"] = price.energy_mj
    if weights.thermal > 0.0:
        terms["thermal"] = price.energy_mj * constants.heat_c_per_mj
    if weights.memory > 0.0:
        terms["memory"] = (counts > 0) * constants.weight_bytes
    if weights.balance > 0.0:
        tokens = counts.double()
        total = tokens.sum(dim=-1, keepdim=True).clamp_min(1.0)
        terms["balance"] = counts.shape[-1] * (tokens / total).square()
    return terms


def _layer_terms(counts: Tensor, table: CostTable, weights: Objective) -> dict[str, Tensor]:
    """Each term that has weight, of whole layers [...]."""
    terms = {
        name: value.sum(dim=-1) for name, value in _expert_terms(counts, table, weights).items()
    }
    price = table.layer_cost(counts)  # with the layer's base, which no expert has
    if weights.latency > 0.0:
        terms["latency"] = price.latency_us
    if weights.energy > 0.0:
        terms["energy"] = price.energy_mj
    return terms
