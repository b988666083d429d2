"""What a router is trained by beside its task: even load, and layers that cost little.

T is rows, E experts.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from costprof.costmodel.table import CostTable
from costprof.routing.contract import Gate
from costprof.routing.gate import select
from costprof.routing.parameters import check_number, check_whole
from costprof.routing.pruning import sum_by_expert
from costprof.routing.relaxation import (
    allowed_experts,
    expected_cost,
    expected_decode_cost,
    inclusion,
)


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
    frequency, mean = _use(logits, gate, _all_rows(logits) if real is None else real)
    return logits.shape[-1] * (frequency * mean).sum()


def cost_share(
    logits: Tensor,
    *,
    table: CostTable,
    gate: Gate,
    objective: Literal["latency", "energy"] = "latency",
    batch: int | None = None,
    real: Tensor | None = None,
) -> Tensor:
    """Expected price of the layer as a share of one with even use, a float32 scalar.

    Without `batch` the layer is that of these rows. The price is that of a smoothed top-k
    (`costprof.routing.relaxation`), differentiable in the logits, and shares are of a layer with
    all experts awake and the same tokens.

    Training batches are larger than those served, and in a large one no expert sleeps. With `batch`
    the layer is that of a decode batch of so many rows, drawn from these: each uses an expert with
    the probability of its being chosen here, whose gradient is that of its mean score
    (straight-through: a push towards choosing alike, not a derivative). Shares are of such a batch
    that uses all alike.

    A selection bias of the gate is not in the gradient.

    Args:
        logits: [T, E] of the router.
        batch: At least 1; None: T.
        real: [T] bool, rows that count; None: all.

    Raises:
        InputError: `batch` is below 1.
        TableError: the table does not price the objective.
    """
    check_whole("batch", batch, 1, optional=True, consequence="the router has no loss")
    _check_priced(table, objective)
    kept = _all_rows(logits) if real is None else real
    n_experts = logits.shape[-1]
    if batch is None:
        use = inclusion(logits, allowed_experts(logits.detach(), gate), gate.top_k)
        price = expected_cost(torch.where(kept.unsqueeze(-1), use, 0.0), table)
        # As if each row used every expert a little: all awake, the same number of assignments.
        even = kept.sum().double() * gate.top_k / n_experts
        whole = table.expected_layer_cost(even.clamp_min(1.0).expand(n_experts))
    else:
        frequency, mean = _use(logits, gate, kept)
        p = gate.top_k * (mean + (frequency - mean).detach())
        price = expected_decode_cost(p, table, batch)
        alike = torch.full_like(p, gate.top_k / n_experts)
        whole = expected_decode_cost(alike, table, batch)
    if objective == "latency":
        cost, base = price.latency_us, whole.latency_us
    else:
        cost, base = price.energy_mj, whole.energy_mj
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
    batch: int | None = None,
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
        objective, batch, real: See `cost_share`.

    Raises:
        InputError: a weight below 0, or a `batch` below 1.
        TableError: the table does not price the objective.
    """
    check_number("balance", balance, consequence="the router has no loss")
    check_number("lam", lam, consequence="the router has no loss")
    loss = task
    if balance > 0.0:
        loss = loss + balance * load_balance(logits, gate, real)
    if lam > 0.0:
        cost = cost_share(
            logits, table=table, gate=gate, objective=objective, batch=batch, real=real
        )
        loss = loss + lam * cost
    return loss


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _check_priced(table: CostTable, objective: Literal["latency", "energy"]) -> None:
    """Check that `table` prices the `objective`; only its prices on the host are read."""
    table.check_priced(["latency_us" if objective == "latency" else "energy_mj"])


def _use(logits: Tensor, gate: Gate, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Each expert's share of all slots, without gradient, and its mean share of scores, with; [E].

    Both are of the rows `kept` [T] bool, and sum to 1 where there are any.
    """
    plain = select(logits, gate)
    used = kept.unsqueeze(-1).expand_as(plain.indices)
    counts = sum_by_expert(plain.indices, used, logits.shape[-1])
    scores = plain.scores
    share = scores / scores.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
    share = torch.where(kept.unsqueeze(-1), share, 0.0)
    mean = share.sum(dim=0) / kept.sum().clamp_min(1)
    return (counts / counts.sum().clamp_min(1)).to(mean.dtype), mean


def _all_rows(logits: Tensor) -> Tensor:
    return torch.ones(logits.shape[0], dtype=torch.bool, device=logits.device)
