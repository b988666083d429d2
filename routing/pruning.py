"""What dropping experts does to a batch: who carries what, who may go, who moves where.

Gate mass is summed in fixed point, in units of 1 / `ONE`: sums of whole numbers are the same in
any order and on any device, so neither padding nor the order of rows can tip a tie.

T is rows, E experts, k slots a row, J candidate sets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from costprof.routing.contract import Selection

ONE = 1 << 40

_ROUNDS = 2
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


def must_keep(plain: Selection, changeable: Tensor, real: Tensor) -> Tensor:
    """Slots [T, k] bool whose expert stays: each row's first, and all of rows not changeable."""
    keep = (real & ~changeable).unsqueeze(-1).expand_as(plain.indices).clone()
    keep[:, 0] = real
    return keep


def drop_ranks(price: Tensor, indices: Tensor, share: Tensor, slack: int) -> Tensor:
    """In which order experts may all be dropped, no row losing more than `slack` of its share.

    In each of two rounds every row adds up its shares from the lowest price on and objects to
    what goes beyond its slack; experts nobody objects to are dropped. A row's sum also counts
    experts that others keep, so the bound holds with room to spare, which the second round uses.
    Rows vote at once, where trying one expert after the other would take E steps.

    Args:
        price: [E], lowest first; infinite for experts that stay.
        indices: [T, k] int64.
        share: [T, k] int64; 0 in rows that may not be changed.
        slack: What a row may lose, in units of 1 / `ONE`.

    Returns:
        [E] int64: 0 … n - 1 for the n experts that may be dropped, E for those that stay.
    """
    n_experts = price.numel()
    stays = _ROUNDS * n_experts
    key = torch.full_like(price, stays, dtype=torch.int64)
    lost = torch.zeros_like(share[:, :1])
    by_price = torch.argsort(price, stable=True)
    place = torch.argsort(by_price)
    candidate = torch.isfinite(price)
    places, slots = torch.sort(place[indices], dim=-1)
    for round_ in range(_ROUNDS):
        # An expert that alone is too much for some row stays, and no longer counts for others.
        too_much = (lost + share > slack) & (share > 0)
        candidate = candidate & (sum_by_expert(indices, too_much, n_experts) == 0)
        at_stake = (share * candidate[indices]).gather(-1, slots)
        objects = (lost + at_stake.cumsum(dim=-1) > slack) & (at_stake > 0)
        objections = sum_by_expert(by_price[places], objects, n_experts)
        dropped = candidate & (objections == 0)
        key = torch.where(dropped, place + round_ * n_experts, key)
        lost = lost + (share * dropped[indices]).sum(dim=-1, keepdim=True)
        candidate = candidate & ~dropped
    rank = torch.argsort(torch.argsort(key, stable=True))
    return rank.masked_fill(key == stays, n_experts)


def refill(plain: Selection, active: Tensor, gone: Tensor) -> tuple[Tensor, Tensor]:
    """Give slots that lost their expert the next ones of their row's ranking that are active.

    Args:
        plain: The choice of T rows.
        active: [J, E] bool, experts that may be refilled from.
        gone: [J, E] bool, experts dropped.

    Returns:
        indices [J, T, k] and used [J, T, k]; other slots keep their expert and place.
    """
    top_k = plain.indices.shape[-1]
    lost = gone[:, plain.indices]  # [J, T, k]
    own = torch.zeros_like(plain.ranking, dtype=torch.bool).scatter_(-1, plain.indices, True)
    closed = own | ~active.unsqueeze(1)  # [J, T, E]
    spare = plain.ranking.masked_fill(closed, -torch.inf).topk(top_k, dim=-1)
    nth = (lost.cumsum(dim=-1) - 1).clamp_min(0)
    indices = torch.where(lost, spare.indices.gather(-1, nth), plain.indices)
    used = ~lost | (spare.values.gather(-1, nth) > -torch.inf)
    return indices, used & plain.used


def pruned(
    plain: Selection, indices: Tensor, used: Tensor, gone: Tensor, share: Tensor
) -> Selection:
    """The selection after `gone` [E] was dropped and slots became `indices`, `used` [T, k].

    `share` [T, k] is what plain slots hold of their row's gate mass, see `gate_shares`. Weights
    of a changed row sum to what its plain weights summed to; other rows keep theirs.
    """
    lost = gone[plain.indices]  # [T, k]
    chosen = plain.scores.gather(-1, indices).masked_fill(~used, 0.0)
    total = plain.weights.sum(dim=-1, keepdim=True)
    scaled = chosen / (chosen.sum(dim=-1, keepdim=True) + _TINY) * total
    return Selection(
        scores=plain.scores,
        ranking=plain.ranking,
        indices=indices,
        weights=torch.where(lost.any(dim=-1, keepdim=True), scaled, plain.weights),
        used=used,
        gate_mass_lost=(share * lost).sum(dim=-1).double() / ONE,
    )
