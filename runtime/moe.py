"""A Mixture-of-Experts layer in torch that routes by a cost table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from costprof.core.errors import InputError
from costprof.costmodel.table import CostTable
from costprof.routing import Assignment, Gate, Rows, SystemState, TopK, route
from costprof.routing.contract import Policy
from costprof.runtime.experts import Expert
from costprof.runtime.kernel_choice import KernelChoice
from costprof.runtime.permutation import permutation

_COOL = SystemState()
_TOPK = TopK()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerOutput:
    """What a layer computed, and how.

    Attributes:
        hidden: [T, d_model]; 0 in padding rows.
        assignment: Who computed what.
        logits: [T, E] of the router, before any offset.
    """

    hidden: Tensor
    assignment: Assignment
    logits: Tensor


class MoELayer(nn.Module):
    """Router, policy and experts; each active expert runs once, on its rows side by side.

    Experts may differ in class, for example bfloat16 beside 4-bit ones. With a neutral policy the
    output is bit for bit that of plain top-k: experts in ascending order, each adding its weighted
    rows. Every addition has a fixed place in that order, so runs repeat exactly.

    Attributes:
        gate: How logits become a choice and weights.
        policy: What may change that choice; may be replaced between calls.
        table: Prices of the experts.
    """

    gate_weight: Tensor

    def __init__(
        self,
        gate_weight: Tensor,
        experts: Sequence[Expert],
        *,
        gate: Gate,
        table: CostTable,
        policy: Policy = _TOPK,
    ) -> None:
        """Build the layer of router `gate_weight` [E, d_model] and E `experts`.

        Raises:
            InputError: router, experts and table do not describe the same layer.
        """
        super().__init__()
        _check_layer(gate_weight, experts, table)
        self.register_buffer("gate_weight", gate_weight.detach())
        self.experts = nn.ModuleList(experts)
        self.gate = gate
        self.policy = policy
        self.table = table

    @classmethod
    def random(
        cls,
        gate_weight: Tensor,
        *,
        gate: Gate,
        table: CostTable,
        generator: torch.Generator,
        policy: Policy = _TOPK,
    ) -> MoELayer:
        """Return a layer of the table's expert classes with random weights, on the router's device.

        Experts run by the kernel the table priced, under the tile configs it found best.

        Raises:
            InputError: the router does not fit the table.
        """
        classes = table.moe.class_of_expert
        choices = {
            each: KernelChoice.from_table(table, classes.index(each), gate_weight.device)
            for each in set(classes)
        }
        experts = [
            Expert.random(
                table.expert_class(e),
                generator,
                gate_weight.device,
                choice=choices[classes[e]],
            )
            for e in range(table.n_experts)
        ]
        return cls(gate_weight, experts, gate=gate, table=table, policy=policy)

    def forward(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        """Return [T, d_model] for hidden states `x` [T, d_model]; see `run`."""
        return self.run(x, rows=rows).hidden

    def run(
        self,
        x: Tensor,
        *,
        rows: Rows | None = None,
        state: SystemState = _COOL,
        history: Any = None,
        logit_offset: Tensor | None = None,
        batch_invariant: bool = False,
    ) -> LayerOutput:
        """Route and compute `x` [T, d_model].

        Args:
            rows: What each row is; None: every row is a real decode token of its own sequence.
            state: What the machine is doing.
            history: `assignment.history` of the last batch.
            logit_offset: [E], added to the router's logits (see `costprof.runtime.adapt`).
            batch_invariant: Let no row's experts depend on other rows. (The router's product
                itself may round differently in a batch of another size.)

        Raises:
            InputError: `x` or `rows` do not fit the layer.
        """
        if x.dim() != 2 or x.shape[1] != self.gate_weight.shape[1]:
            raise InputError(
                f"hidden states have shape {list(x.shape)}",
                "the layer cannot run",
                f"give [tokens, {self.gate_weight.shape[1]}]",
            )
        logits = F.linear(x, self.gate_weight.to(x.dtype))
        assignment = route(
            logits if logit_offset is None else logits + logit_offset,
            table=self.table,
            gate=self.gate,
            policy=self.policy,
            rows=rows,
            state=state,
            history=history,
            batch_invariant=batch_invariant,
        )
        hidden = self._compute(x, assignment, state)
        return LayerOutput(hidden=hidden, assignment=assignment, logits=logits)

    def _compute(self, x: Tensor, assignment: Assignment, state: SystemState) -> Tensor:
        """Run each active expert on its rows and add up the weighted results, [T, d_model]."""
        slots = permutation(assignment.indices, assignment.used, assignment.counts).slots
        tokens = slots // assignment.indices.shape[1]
        weights = assignment.weights.flatten()[slots].to(x.dtype).unsqueeze(-1)
        counts = assignment.counts.tolist()
        x_sorted = x.index_select(0, tokens[: sum(counts)])
        out = torch.zeros_like(x)
        start = 0
        for expert, count in zip(self.experts, counts, strict=True):
            if count:
                run = slice(start, start + count)
                # A token meets an expert at most once, so no two of these additions collide.
                out.index_add_(0, tokens[run], expert(x_sorted[run], state) * weights[run])
                start += count
        return out


def _check_layer(gate_weight: Tensor, experts: Sequence[Expert], table: CostTable) -> None:
    wanted = (table.n_experts, table.expert_class(0).d_model)
    if tuple(gate_weight.shape) != wanted:
        raise InputError(
            f"the router's weight has shape {list(gate_weight.shape)}",
            "it does not fit the table's layer",
            f"give [experts, d_model] = {list(wanted)}",
        )
    if len(experts) != table.n_experts:
        raise InputError(
            f"{len(experts)} experts, {table.n_experts} in the table",
            "they cannot be priced",
            "use the table (or its moe=) of this layer",
        )
    for number, expert in enumerate(experts):
        if expert.expert_class != table.expert_class(number):
            raise InputError(
                f"expert {number} is of another class than the table's expert {number}",
                "its price would be that of something else",
                "build it from table.expert_class(expert)",
            )
