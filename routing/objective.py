"""What is to be saved: latency, energy, heat, memory traffic and imbalance as one number.

E is experts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import astuple, dataclass, fields

import torch
from torch import Tensor

from costprof.core.errors import InputError, TableError
from costprof.costmodel.table import CostTable, ExpertConstants, Quantity
from costprof.routing.parameters import check_number, set_number


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
        for each in fields(self):
            set_number(self, each.name)
        check_number("the sum of an objective's weights", sum(astuple(self)), 1e-12, math.inf)

    @classmethod
    def of(cls, weights: Mapping[str, float]) -> Objective:
        """Return the objective of the named `weights` alone: latency has none unless named.

        Raises:
            InputError: an unknown name, or weights that make no objective.
        """
        known = [each.name for each in fields(cls)]
        for name in weights:
            if name not in known:
                raise InputError(
                    f"an objective has no weight {name!r}",
                    "the policy cannot be built",
                    f"use {', '.join(known)}",
                )
        return cls(**{"latency": 0.0, **weights})

    def weights(self) -> dict[str, float]:
        """Return the terms that have weight, with weights that add up to 1."""
        total = sum(astuple(self))
        shares = {each.name: getattr(self, each.name) / total for each in fields(self)}
        return {name: share for name, share in shares.items() if share > 0.0}

    def check(self, table: CostTable) -> None:
        """Check that `table` prices what has weight; only its own prices on the host are read.

        Raises:
            TableError: it does not.
        """
        needed: list[Quantity] = []
        if self.latency > 0.0:
            needed.append("latency_us")
        if self.energy > 0.0 or self.thermal > 0.0:
            needed.append("energy_mj")
        table.check_priced(needed)
        if self.thermal > 0.0 and not bool(table.expert_constants("cpu").heat_c_per_mj.any()):
            raise TableError(
                "the table knows no expert's rise in temperature",
                "nothing can be routed by thermal",
                "use another objective or a table that measured it",
            )

    def layer(self, counts: Tensor, table: CostTable, *, plain: Tensor) -> Tensor:
        """Cost [...] of layers with token `counts` [..., E], that of `plain` [E] being 1."""
        names = self.weights()
        return self._weighted(_layer_terms(counts, table, names), _layer_terms(plain, table, names))

    def experts(self, counts: Tensor, table: CostTable, *, layer: Tensor | None = None) -> Tensor:
        """What each expert of `counts` [..., E] adds, as shares of the `layer` [E], [..., E].

        By default of the layer of `counts` [E] themselves. The shares of all its experts add up
        to less than 1 where the layer itself has a price.
        """
        names = self.weights()
        whole = counts if layer is None else layer
        return self._weighted(
            _expert_terms(counts, table, names, layer=whole), _layer_terms(whole, table, names)
        )

    def saved(self, counts: Tensor, fewer: Tensor, table: CostTable) -> Tensor:
        """What each expert saves with `fewer` [E] instead of `counts` [E], as shares, [E]."""
        return self.experts(counts, table) - self.experts(fewer, table, layer=counts)

    def _weighted(self, terms: dict[str, Tensor], whole: dict[str, Tensor]) -> Tensor:
        """Weighted mean of `terms`, each divided by its value [] for the `whole` layer."""
        parts = []
        for name, weight in self.weights().items():
            # An empty layer has no cost, so nothing can be a share of it.
            base = torch.where(whole[name] > 0, whole[name], torch.ones_like(whole[name]))
            parts.append(terms[name] * weight / base)
        return torch.stack(parts).sum(0)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def expert_constants(table: CostTable, device: torch.device) -> ExpertConstants:
    """What of each expert a trace of `torch.compile` need not look into."""
    return table.expert_constants(device)


def _expert_terms(
    counts: Tensor, table: CostTable, names: Collection[str], *, layer: Tensor
) -> dict[str, Tensor]:
    """The terms `names` of each expert [..., E]; imbalance is that of the tokens of `layer`."""
    terms: dict[str, Tensor] = {}
    if not {"latency", "energy", "thermal"}.isdisjoint(names):
        price = table.expert_costs(counts)
        terms["latency"], terms["energy"] = price.latency_us, price.energy_mj
        if "thermal" in names:
            terms["thermal"] = (
                price.energy_mj * expert_constants(table, counts.device).heat_c_per_mj
            )
    if "memory" in names:
        terms["memory"] = (counts > 0) * expert_constants(table, counts.device).weight_bytes
    if "balance" in names:
        tokens = layer.sum(dim=-1, keepdim=True).double().clamp_min(1.0)
        terms["balance"] = counts.shape[-1] * (counts.double() / tokens).square()
    return terms


def _layer_terms(counts: Tensor, table: CostTable, names: Collection[str]) -> dict[str, Tensor]:
    """The terms `names` of whole layers [...]."""
    summed = set(names) - {"latency", "energy"}
    terms = _expert_terms(counts, table, summed, layer=counts)
    whole = {name: terms[name].sum(dim=-1) for name in summed}
    if len(summed) < len(names):
        price = table.layer_cost(counts)  # with the layer's base, which no expert has
        whole |= {"latency": price.latency_us, "energy": price.energy_mj}
    return whole
