"""Routing policies, one a file; each is a frozen dataclass with a neutral setting."""

from __future__ import annotations

from typing import Any

from costprof.routing.policies.budget import Budget
from costprof.routing.policies.cache_prior import CachePrior
from costprof.routing.policies.cost_bias import CostBias
from costprof.routing.policies.fewer import Fewer
from costprof.routing.policies.lynx import Lynx
from costprof.routing.policies.marginal import Marginal
from costprof.routing.policies.oea import OEA
from costprof.routing.policies.prune import Prune
from costprof.routing.policies.skip import Skip
from costprof.routing.policies.static_optimal import StaticSet
from costprof.routing.policies.statistical_balance import StatisticalBalance
from costprof.routing.policies.tile_round import TileRound
from costprof.routing.policies.topk import TopK

POLICIES: dict[str, type[Any]] = {
    "topk": TopK,
    "fewer": Fewer,
    "skip": Skip,
    "oea": OEA,
    "budget": Budget,
    "lynx": Lynx,
    "cache_prior": CachePrior,
    "cost_bias": CostBias,
    "statistical_balance": StatisticalBalance,
    "prune": Prune,
    "tile_round": TileRound,
    "static_optimal": StaticSet,
    "marginal": Marginal,
}
"""Every policy by name, as `costprof route --policy` takes it. Built without arguments each is
plain top-k, bit for bit. `Scheduled` is not among them: it is made of others."""

__all__ = [
    "OEA",
    "POLICIES",
    "Budget",
    "CachePrior",
    "CostBias",
    "Fewer",
    "Lynx",
    "Marginal",
    "Prune",
    "Skip",
    "StaticSet",
    "StatisticalBalance",
    "TileRound",
    "TopK",
]
