"""A forward call of an attached model, and how a layer computed again finds the call it was in.

Gradient checkpointing runs layers a second time while gradients are computed. What a policy then
decides must be what it decided the first time, though its history has gone on. So the nodes of a
call's autograd graph carry the call, which lives as long as the graph.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from costprof.costmodel.table import CostTable
from costprof.routing import Rows, SystemState, route
from costprof.routing.contract import Gate, Policy
from costprof.runtime.integrations.batch import Batch, KnownRows

_KEY = "costprof.call"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decision:
    """All a policy was told of a layer's batch but the logits."""

    policy: Policy
    gate: Gate
    rows: Rows
    state: SystemState
    history: Any


def decide(
    own: tuple[Tensor, Tensor, Tensor], table: CostTable, decision: Decision
) -> tuple[Tensor, Tensor, Tensor, Any]:
    """Return weights, indices [T, k], mean gate mass lost and the history after it.

    Rows whose experts the policy leaves as they are keep the very bits of their `own` weights.
    """
    logits, weights, indices = own
    rows = _on(decision.rows, logits.device)
    routed = route(
        logits,
        table=table,
        gate=decision.gate,
        policy=decision.policy,
        rows=rows,
        state=decision.state,
        history=decision.history,
    )
    same = (routed.indices.sort(dim=-1).values == indices.sort(dim=-1).values).all(dim=-1)
    keeps = (same & routed.used.all(dim=-1)).unsqueeze(-1)
    return (
        torch.where(keeps, weights, routed.weights.to(weights.dtype)),
        torch.where(keeps, indices, routed.indices.to(indices.dtype)),
        routed.gate_mass_lost.sum() / rows.real.sum().clamp_min(1),
        routed.history,
    )


@dataclass(slots=True, eq=False)
class Call:
    """A forward call.

    Attributes:
        number: From 0.
        batch: Its rows; None where nothing tells what they are.
        called: Whether a router ran.
        keeps: Whether gradients may be asked for, so that decisions are kept.
        decisions: By router module name.
        before: Graph nodes that made the arguments.
    """

    number: int
    batch: Batch | KnownRows | None
    called: bool = False
    keeps: bool = False
    decisions: dict[str, Decision] = field(default_factory=dict)
    before: list[Any] = field(default_factory=list)

    def batch_of(self, rows: int) -> Batch | KnownRows | None:
        """Note that a router of `rows` rows ran; return what they are, None if not known."""
        self.called = True
        return self.batch if self.batch is not None and len(self.batch) == rows else None


def in_backward() -> bool:
    """Whether gradients are being computed in this thread: a layer that runs now runs again."""
    return torch._C._current_graph_task_id() != -1


def call_of_backward() -> Call | None:
    """Return the call whose graph gradients are being computed of; None where it is not known."""
    node: Any = torch._C._current_autograd_node()
    call: Call | None = None if node is None else node.metadata.get(_KEY)
    return call


def nodes_of(values: Any) -> list[Any]:
    """Return the graph nodes that made the tensors in `values`, such as a model's arguments."""
    leaves = pytree.tree_leaves(values)
    made = [leaf.grad_fn for leaf in leaves if isinstance(leaf, Tensor)]
    return [node for node in made if node is not None]


def mark(output: Any, call: Call) -> None:
    """Let the nodes of the graph of a model's `output` carry `call`, down to its arguments'."""
    before, call.before = set(call.before), []
    waiting = nodes_of(output)
    while waiting:
        node = waiting.pop()
        # What came before the call is left alone: leaves, and graphs of other calls.
        if node is None or node in before or _KEY in node.metadata or hasattr(node, "variable"):
            continue
        node.metadata[_KEY] = call
        waiting.extend(following for following, _ in node.next_functions)


def _on(rows: Rows, device: torch.device) -> Rows:
    if rows.real.device == device:
        return rows
    return Rows(
        real=rows.real.to(device),
        sequence=rows.sequence.to(device),
        position=rows.position.to(device),
        is_prefill=rows.is_prefill.to(device),
        distinct=rows.distinct,
    )
