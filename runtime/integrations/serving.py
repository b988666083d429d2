"""One MoE layer inside a server: routed by a policy or only watched, priced inside CUDA graphs.

A server replays CUDA graphs, in which no Python runs: whatever is counted or remembered is so by
tensor operations on buffers that stay where they are, and read when somebody asks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from costprof.core.errors import InputError
from costprof.costmodel.table import CostTable
from costprof.routing import Gate, Rows, Scheduled, route
from costprof.routing.contract import Policy, SystemState
from costprof.routing.gate import select
from costprof.runtime.integrations import graphs


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What a server says of the rows of the step under way.

    Attributes:
        real: [T] bool, False for padding; None where all are real.
        is_decode: Known to hold one token of each sequence, and none of a prompt.
    """

    real: Tensor | None = None
    is_decode: bool = False


UNKNOWN = Step()
ReadStep = Callable[[Tensor], Step]
"""Takes the router logits [T, E], of which it may use shape and device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTotals:
    """Sums over all steps of one layer that had a real row; prices are the table's predictions.

    Attributes:
        layer: Number of the layer, in the order the server built or first called them.
        active_experts, plain_active_experts: Mean per step, of real rows.
        latency_us, energy_mj, plain_latency_us, plain_energy_mj: Summed.
    """

    layer: int
    steps: int
    active_experts: float
    latency_us: float
    energy_mj: float
    plain_active_experts: float
    plain_latency_us: float
    plain_energy_mj: float


class ServedLayer:
    """The `custom_routing_function` of one layer, which also keeps its totals.

    Called as vLLM and SGLang call theirs: `(hidden_states [T, H], gating_output [T, E], topk,
    renormalize) -> (weights [T, k] float32, ids [T, k] int32)`. Scores are the softmax, as in both
    where a model brings no function of its own. Rows are changed in decode steps only; padding
    rows influence no choice and get weight 0 at an expert that is active anyway.
    """

    def __init__(
        self,
        number: int,
        table: CostTable,
        policy: Policy | None,
        read_step: ReadStep,
        read_state: Callable[[], SystemState] = SystemState,
    ) -> None:
        """Route or watch layer `number`; `policy` None is plain top-k."""
        self.number = number
        self.table = table
        self.policy = policy
        self._read_step = read_step
        self._read_state = read_state
        self._history: Any = None
        self._sums: Tensor | None = None

    def __call__(
        self, hidden_states: Tensor, gating_output: Tensor, topk: int, renormalize: bool
    ) -> tuple[Tensor, Tensor]:
        """Return weights and expert ids.

        Raises:
            InputError: the layer is not the table's, or its policy cannot be captured in a graph.
        """
        self.check(gating_output.shape[-1], topk)
        if isinstance(self.policy, Scheduled) and graphs.is_captured(gating_output):
            raise InputError(
                "a CUDA graph is captured, and replays would keep the policy of this stage",
                "the policy could not follow the machine",
                "run the server without CUDA graphs, or name one policy for all stages",
            )
        step = self._read_step(gating_output)
        gate = Gate(top_k=topk, renormalise=renormalize)
        if self.policy is None or self.policy.neutral:
            plain = select(gating_output, gate)
            self._add(plain.indices, plain.indices, step.real)
            return plain.weights, plain.indices.to(torch.int32)
        rows = _rows(step, gating_output)
        routed = route(
            gating_output,
            table=self.table,
            gate=gate,
            policy=self.policy,
            rows=rows,
            state=self._read_state(),
            history=self._history,
        )
        self._history = graphs.lasting(self._history, routed.history)
        self._add(routed.indices, select(gating_output, gate).indices, step.real)
        return routed.weights, routed.indices.to(torch.int32)

    def observe(self, topk_ids: Tensor) -> None:
        """Count what the server itself chose, `topk_ids` [T, k]; negative ids are no expert."""
        self._add(topk_ids, topk_ids, self._read_step(topk_ids).real)

    def check(self, n_experts: int, topk: int) -> None:
        """Check that the table prices a layer like this one.

        Raises:
            InputError: it does not.
        """
        priced = self.table.moe
        if (n_experts, topk) != (self.table.n_experts, priced.top_k):
            raise InputError(
                f"MoE layer {self.number} chooses {topk} of {n_experts} experts, "
                f"the table's {priced.name!r} {priced.top_k} of {self.table.n_experts}",
                "it cannot be priced",
                "use the table (or its moe) of this model",
            )

    def totals(self) -> LayerTotals:
        """Return the sums so far; waits for the device."""
        values = [0.0] * 7 if self._sums is None else self._sums.tolist()
        steps, active, plain_active, us, plain_us, mj, plain_mj = values
        return LayerTotals(
            layer=self.number,
            steps=int(steps),
            active_experts=active / max(steps, 1),
            latency_us=us,
            energy_mj=mj,
            plain_active_experts=plain_active / max(steps, 1),
            plain_latency_us=plain_us,
            plain_energy_mj=plain_mj,
        )

    def _add(self, given: Tensor, chosen: Tensor, real: Tensor | None) -> None:
        n_experts = self.table.n_experts
        if self._sums is None:
            self._sums = torch.zeros(7, dtype=torch.float64, device=given.device)
        both = torch.stack([given, chosen]).to(torch.int64)  # [2, T, k]
        valid = (both >= 0) & (both < n_experts)
        if real is not None:
            valid = valid & real.unsqueeze(-1)
        counts = torch.zeros(2, n_experts, dtype=torch.int64, device=given.device)
        counts.scatter_add_(1, both.clamp(0, n_experts - 1).flatten(1), valid.long().flatten(1))
        cost = self.table.layer_cost(counts)
        step = torch.cat(
            [
                torch.ones(1, dtype=torch.float64, device=given.device),
                (counts > 0).sum(-1).double(),
                cost.latency_us,
                cost.energy_mj,
            ]
        )
        self._sums += step * (counts.sum() > 0)


class ServedLayers:
    """The layers of one process, in the order they came.

    Attributes:
        state: What a policy that follows the machine is told of it, from the next call on.
    """

    def __init__(self, table: CostTable, policy: Policy | None, read_step: ReadStep) -> None:
        """Make layers with this table and policy."""
        self.table = table
        self.policy = policy
        self.state = SystemState()
        self._read_step = read_step
        self._layers: dict[object, ServedLayer] = {}

    def layer(self, key: object = None) -> ServedLayer:
        """Return the layer known as `key`, or a new one (always, for None)."""
        number = len(self._layers)
        return self._layers.setdefault(
            ("new", number) if key is None else key,
            ServedLayer(
                number, self.table, self.policy, self._read_step, read_state=lambda: self.state
            ),
        )

    def totals(self) -> list[LayerTotals]:
        """Return what each layer has summed up."""
        return [layer.totals() for layer in self._layers.values()]


def _rows(step: Step, logits: Tensor) -> Rows:
    tokens, device = logits.shape[0], logits.device
    real = step.real
    if real is None:
        real = torch.ones(tokens, dtype=torch.bool, device=device)
    zeros = torch.zeros(tokens, dtype=torch.int64, device=device)
    return Rows(
        real=real,
        sequence=torch.arange(tokens, device=device) if step.is_decode else zeros,
        position=zeros,
        is_prefill=torch.full((tokens,), not step.is_decode, device=device),
        distinct=step.is_decode,
    )
