"""Which expert computes which token: router logits and a cost table in, an assignment out."""

from costprof.routing.contract import Assignment, Gate, Rows, SystemState
from costprof.routing.policies.marginal import Marginal
from costprof.routing.policies.topk import TopK
from costprof.routing.router import route

__all__ = ["Assignment", "Gate", "Marginal", "Rows", "SystemState", "TopK", "route"]
