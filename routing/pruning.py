"""What dropping experts does to a batch: who carries what, who may go, who takes their place.

Gate mass is summed in fixed point, in units of 1 / `ONE`: sums of whole numbers are the same in
any order and on any device, so neither padding nor the order of rows can tip a tie.

T is rows, E experts, k slots a row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from costprof.routing.contract import Selection

ONE = 1 << 40

_TINY = 1e-20


def gate_shares(plain: Selection) -> Tensor:
    """Share of each chosen expert in its row's gate mass, [T, k] int64."""
    scores = plain.scores.gather(-1, plain.indices).double()
    total = scores.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return (scores / total * ONE).to(torch.int64)


def sum_by_expert(indices: Tensor, values: Tensor, n_experts: int) -> Tensor:
    """Sum of integer `values` [..., T, k] over the slots of each expert, [..., E] int64."""
    total = torch.zeros(*indices.shape[:-2], n_experts, dtype=torch.int64, device=indices.device)
    return total.scatter_add_(-1, indices.flatten(-2), values.to(torch.int64).flatten(-2))


def protected(share: Tensor, q: float) -> Tensor:
    """Slots [T, k] bool that a row keeps: from the first on, the fewest that hold `q` of it.

    `share` [T, k] int64 in units of 1 / `ONE`, best experts first.
    """
    return share.cumsum(dim=-1) - share < protected_mass(q)


def protected_mass(q: float) -> int:
    """Return `q` in units of 1 / `ONE`: at least one, so that the first expert stays."""
    return max(math.ceil(q * ONE), 1)


def refill(plain: Selection, active: Tensor, gone: Tensor) -> tuple[Tensor, Tensor]:
    """Give slots that lost their expert the next ones of their row's ranking that are active.

    Args:
        plain: The choice of T rows.
        active: [E] bool, experts the batch uses.
        gone: [E] bool, experts dropped.

    Returns:
        indices [T, k] and used [T, k]; other slots keep their expert and place.
    """
    lost = gone[plain.indices]  # [T, k]
    spare = plain.ranking.masked_fill(gone | ~active, -torch.inf)
    spare = spare.scatter(-1, plain.indices, -torch.inf)  # [T, E]
    best = spare.topk(plain.indices.shape[-1], dim=-1)
    nth = (lost.cumsum(dim=-1) - 1).clamp_min(0)
    indices = torch.where(lost, best.indices.gather(-1, nth), plain.indices)
    used = ~lost | (best.values.gather(-1, nth) > -torch.inf)
    return indices, used & plain.used


def pruned(
    plain: Selection, indices: Tensor, used: Tensor, lost: Tensor, share: Tensor
) -> Selection:
    """The selection where rows that `lost` [T, k] a slot take `indices` and `used` [T, k].

    `share` [T, k] is what plain slots hold of their row's gate mass, see `gate_shares`. Weights
    of a changed row sum to what its plain weights summed to; other rows stay as they are.
    """
    changed = lost.any(dim=-1, keepdim=True)
    chosen = plain.scores.gather(-1, indices).masked_fill(~used, 0.0)
    total = plain.weights.sum(dim=-1, keepdim=True)
    scaled = chosen / (chosen.sum(dim=-1, keepdim=True) + _TINY) * total
    return Selection(
        scores=plain.scores,
        ranking=plain.ranking,
        indices=torch.where(changed, indices, plain.indices),
        weights=torch.where(changed, scaled, plain.weights),
        used=torch.where(changed, used, plain.used),
        gate_mass_lost=(share * lost).sum(dim=-1).double() / ONE,
    )
