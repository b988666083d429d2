"""`route`: logits and a policy in, an assignment out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from costprof.core.errors import InputError
from costprof.costmodel.table import CostTable
from costprof.routing.contract import Assignment, Gate, Policy, Rows, SystemState, undescribed
from costprof.routing.gate import select
from costprof.routing.policies.topk import TopK

_COOL = SystemState()
_TOPK = TopK()


def route(
    logits: Tensor,
    *,
    table: CostTable,
    gate: Gate,
    policy: Policy = _TOPK,
    rows: Rows | None = None,
    state: SystemState = _COOL,
    history: Any = None,
    batch_invariant: bool = False,
) -> Assignment:
    """Assign each of T rows to at most k experts.

    Padding rows use no expert and influence nobody's choice; under a sigmoid gate this is as good
    as its scores (`gate.gate_scores`). With a neutral policy real rows get plain top-k, bit for
    bit.

    Args:
        logits: [T, E] floating point.
        table: Prices of the E experts.
        gate: How logits become a choice and weights.
        policy: What may change that choice.
        rows: What each row is; None: every row is a real decode token of its own sequence.
        state: What the machine is doing.
        history: What this policy returned with the last batch.
        batch_invariant: Route every row by itself, whatever the policy: what a request gets then
            does not depend on its companions.

    Raises:
        InputError: shapes do not fit each other.
        TableError: the policy needs a price the table lacks.
    """
    plain = select(logits, gate)
    n_rows, n_experts = logits.shape
    if table.n_experts != n_experts:
        raise InputError(
            f"{n_experts} router logits per row, {table.n_experts} experts in the table",
            "the rows cannot be priced",
            "use the table (or its moe=) of this layer",
        )
    if rows is not None and rows.real.shape != (n_rows,):
        raise InputError(
            f"{n_rows} rows of logits, {rows.real.numel()} described",
            "padding cannot be told from tokens",
            "describe each row once",
        )
    chosen = plain
    if not (policy.neutral or batch_invariant):
        known = undescribed(n_rows, logits.device) if rows is None else rows
        chosen, history = policy.choose(
            plain, table=table, state=state, rows=known, gate=gate, history=history
        )
    indices, weights, used = chosen.indices, chosen.weights, chosen.used
    if rows is not None:
        used = used & rows.real.unsqueeze(-1)
    counts = chosen.counts
    known_slots = counts is not None and rows is None
    if counts is None:
        counts = torch.zeros(n_experts, dtype=torch.int64, device=logits.device)
        counts.scatter_add_(0, indices.flatten(), used.flatten().to(torch.int64))
    lost = chosen.gate_mass_lost
    if not known_slots and (rows is not None or chosen is not plain):
        indices = _fill(indices, used, counts)
        weights = weights.masked_fill(~used, 0.0)
        lost = lost.masked_fill(~used.any(dim=-1), 0.0)
    # What `select` shares among batches is not the caller's to write into.
    if used is plain.used:
        used = used.clone()
    if lost is plain.gate_mass_lost:
        lost = lost.clone()
    return Assignment(
        indices=indices,
        weights=weights,
        used=used,
        counts=counts,
        gate_mass_lost=lost,
        history=history,
        table=table,
    )


def _fill(indices: Tensor, used: Tensor, counts: Tensor) -> Tensor:
    """Point unused slots at an active expert: the row's own first, or the batch's first."""
    own = torch.where(used[:, :1], indices[:, :1], (counts > 0).to(torch.int8).argmax())
    return torch.where(used, indices, own)
