"""What dropping experts does to a batch: who carries what, and who may go.

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

_LEAST = 1e-300
"""Divides scores that are all 0; less than any sum of others, denormal ones too."""

_ROUNDS = 2


def gate_shares(plain: Selection) -> Tensor:
    """Share of each chosen expert in its row's gate mass, [T, k] int64."""
    scores = plain.scores.gather(-1, plain.indices).double()
    total = scores.sum(dim=-1, keepdim=True).clamp_min(_LEAST)
    return (scores / total * ONE).to(torch.int64)


def saliency(plain: Selection, awake: Tensor) -> Tensor:
    """How much a row's output is expected to suffer without each slot, [T, k] int64, 1 / `ONE`.

    The share of the slot's expert times its net share: less that of the best expert the row would
    get instead, of those `awake` [E] in the batch that it does not have and the gate allows; at
    least 0. Of second order, as in Optimal Brain Damage (LeCun et al., 1990): what a trained model
    loses grows with the square of how far its output moves, the first order averages out.
    """
    closed = (plain.ranking == -torch.inf) | ~awake
    closed = closed.scatter(-1, plain.indices, True)
    instead = plain.scores.masked_fill(closed, 0.0).amax(dim=-1, keepdim=True).double()
    scores = plain.scores.gather(-1, plain.indices).double()
    total = scores.sum(dim=-1, keepdim=True).clamp_min(_LEAST)
    net = (scores - instead).clamp_min(0.0) / total
    return (scores / total * net * ONE).to(torch.int64)


def sum_by_expert(indices: Tensor, values: Tensor, n_experts: int) -> Tensor:
    """Sum of integer `values` [..., T, k] over the slots of each expert, [..., E] int64."""
    total = torch.zeros(*indices.shape[:-2], n_experts, dtype=torch.int64, device=indices.device)
    return total.scatter_add_(-1, indices.flatten(-2), values.to(torch.int64).flatten(-2))


def must_keep(plain: Selection, changeable: Tensor, real: Tensor) -> Tensor:
    """Slots [T, k] bool whose expert stays: each row's first, and all of rows not changeable."""
    keep = (real & ~changeable).unsqueeze(-1).expand_as(plain.indices).clone()
    keep[:, 0] = real
    return keep


def slack_mass(q: float) -> int:
    """Return what a row that keeps `q` of its mass may lose, in units of 1 / `ONE`."""
    return math.floor((1.0 - q) * ONE)


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
