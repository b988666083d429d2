"""Which expert computes which token: router logits and a cost table in, an assignment out."""

from costprof.routing.contract import Assignment, Gate, Rows, SystemState
from costprof.routing.objective import Objective
from costprof.routing.policies import (
    OEA,
    POLICIES,
    Budget,
    CachePrior,
    CostBias,
    Fewer,
    Lynx,
    Marginal,
    Prune,
    Skip,
    StaticSet,
    StatisticalBalance,
    TileRound,
    TopK,
)
from costprof.routing.policies.scheduled import Scheduled
from costprof.routing.policies.static_optimal import static_optimal
from costprof.routing.router import route

__all__ = [
    "OEA",
    "POLICIES",
    "Assignment",
    "Budget",
    "CachePrior",
    "CostBias",
    "Fewer",
    "Gate",
    "Lynx",
    "Marginal",
    "Objective",
    "Prune",
    "Rows",
    "Scheduled",
    "Skip",
    "StaticSet",
    "StatisticalBalance",
    "SystemState",
    "TileRound",
    "TopK",
    "route",
    "static_optimal",
]
