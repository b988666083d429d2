"""What a router is trained by beside its task: even load, and layers that cost little.

T is rows, E experts.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from costprof.core.errors import TableError
from costprof.costmodel.table import CostTable
from costprof.routing.contract import Gate
from costprof.routing.gate import gate_scores, select
from costprof.routing.parameters import check_number
from costprof.routing.pruning import sum_by_expert
from costprof.routing.relaxation import allowed_experts, expected_cost, inclusion


def load_balance(logits: Tensor, gate: Gate, real: Tensor | None = None) -> Tensor:
    """Load-balance loss of Switch Transformers (arXiv 2101.03961, equation 4), a scalar.

        E · Σ_e f_e · P_e

    `f_e` is the share of all assignments that expert `e` gets, `P_e` the mean over rows of its
    score as a share of the row's scores. 1 where all experts are used alike, up to E. The gradient
    goes through `P`. With k experts a row `f` counts all of them, so 1 means even here too.

    Args:
        logits: [T, E] of the router.
        real: [T] bool, rows that count; None: all.
    """
    plain = select(logits, gate)
    kept = _all_rows(logits) if real is None else real
    used = kept.unsqueeze(-1).expand_as(plain.indices)
    counts = sum_by_expert(plain.indices, used, logits.shape[-1])
    frequency = counts / counts.sum().clamp_min(1)
    scores = gate_scores(logits, gate)
    share = scores / scores.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
    share = torch.where(kept.unsqueeze(-1), share, 0.0)
    mean = share.sum(dim=0) / kept.sum().clamp_min(1)
    return logits.shape[-1] * (frequency.to(mean.dtype) * mean).sum()


def cost_share(
    logits: Tensor,
    *,
    table: CostTable,
    gate: Gate,
    objective: Literal["latency", "energy"] = "latency",
    real: Tensor | None = None,
) -> Tensor:
    """Expected price of the layer as a share of one with all experts awake, a float32 scalar.

    The price is that of a smoothed top-k (`costprof.routing.relaxation`), differentiable in the
    logits; it sees whether an expert can stay asleep in this batch, so a training batch should be
    about as large as those to be served. The layer it is compared with spreads the same tokens
    evenly. A selection bias of the gate is not in it.

    Args:
        logits: [T, E] of the router.
        real: [T] bool, rows that count; None: all.

    Raises:
        TableError: the table does not price the objective.
    """
    kept = _all_rows(logits) if real is None else real
    use = inclusion(logits, allowed_experts(logits.detach(), gate), gate.top_k)
    use = torch.where(kept.unsqueeze(-1), use, 0.0)
    n_experts = logits.shape[-1]
    # As if each row used every expert a little: all awake, the same number of assignments.
    even = kept.sum().double() * gate.top_k / n_experts
    whole = table.expected_layer_cost(even.clamp_min(1.0).expand(n_experts))
    price = expected_cost(use, table)
    if objective == "latency":
        cost, base = price.latency_us, whole.latency_us
    else:
        cost, base = price.energy_mj, whole.energy_mj
    if not bool(base > 0):
        raise TableError(
            f"the table prices this layer's {objective} at {float(base)}",
            "a router cannot be trained by it",
            "use another objective or a table that measured it",
        )
    return (cost / base).float()


def router_loss(
    task: Tensor,
    logits: Tensor,
    *,
    table: CostTable,
    gate: Gate,
    balance: float = 0.01,
    lam: float = 0.0,
    objective: Literal["latency", "energy"] = "latency",
    real: Tensor | None = None,
) -> Tensor:
    """`task + balance · load_balance + lam · cost_share` of one layer, a scalar.

    The two pull apart: even load wakes every expert. With several layers call it with the task
    loss once and add the others' `load_balance` and `cost_share`.

    Args:
        task: The model's own loss, a scalar.
        logits: [T, E] of the router.
        balance: At least 0; Switch uses 0.01.
        lam: At least 0; 0 leaves the cost out.

    Raises:
        InputError: a weight below 0.
        TableError: the table does not price the objective.
    """
    check_number("balance", balance, consequence="the router has no loss")
    check_number("lam", lam, consequence="the router has no loss")
    loss = task
    if balance > 0.0:
        loss = loss + balance * load_balance(logits, gate, real)
    if lam > 0.0:
        cost = cost_share(logits, table=table, gate=gate, objective=objective, real=real)
        loss = loss + lam * cost
    return loss


def _all_rows(logits: Tensor) -> Tensor:
    return torch.ones(logits.shape[0], dtype=torch.bool, device=logits.device)
