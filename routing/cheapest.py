"""How many of the experts that could go make a layer cheapest, where experts differ in price.

What an expert's tokens cost elsewhere is then a question of where they go: a dear expert's going
may save less than what a cheap one with a high price per token takes for them. Of experts of one
class whose price is a wake-up and so much a token, each that goes saves its wake-up, and a slot
that stays empty its token: there the most are the cheapest, and nothing is searched.

T is rows, E experts, k slots a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from costprof.costmodel.table import CostTable
from costprof.routing.contract import Selection
from costprof.routing.objective import Objective
from costprof.routing.pruning import sum_by_expert
from costprof.routing.reselection import own_experts

_AT_ONCE = 16
"""Prefixes laid out at once: all of them would take E · T · E numbers."""
_CPU = torch.device("cpu")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def prices_differ(table: CostTable) -> bool:
    """Whether the table's experts are of several classes, each with prices of its own."""
    return table.lookup(_CPU).n_classes > 1


def turns(gone: Tensor, aimed: Tensor, rank: Tensor, price: Tensor) -> Tensor:
    """In which turn the experts `gone` [E] bool go, [E] int64; E for those that stay.

    Those `aimed` [E] at a budget by `rank` [E], then the others by `price` [E]: so the experts
    that go under some `lam`, or for some budget alone, are a prefix of those under more.
    """
    n_experts = gone.numel()
    by_price = torch.argsort(torch.argsort(price, stable=True))
    key = torch.where(aimed, rank, n_experts + by_price)
    key = key.masked_fill(~gone, 2 * n_experts)
    place = torch.argsort(torch.argsort(key, stable=True))
    return place.masked_fill(~gone, n_experts)


def cheapest_prefix(
    plain: Selection,
    turn: Tensor,
    counts: Tensor,
    real: Tensor,
    objective: Objective,
    table: CostTable,
) -> Tensor:
    """Which experts go, [E] bool: as many in `turn` [E] as make the layer cheapest.

    The fewest of equals, none where no number is cheaper than plain top-k, whose token `counts`
    are [E]. `real` is [T] bool. The cheapest of more prefixes costs no more and is no shorter: it
    is the one of the fewer, or one of the longer that is cheaper.
    """
    each = prefix_counts(plain, turn, counts > 0, real)
    best = objective.layer(each, table, plain=counts).argmin()  # the first of equals
    return turn < best


def prefix_counts(plain: Selection, turn: Tensor, awake: Tensor, real: Tensor) -> Tensor:
    """Token counts [E + 1, E] of the layer after 0 … E turns; rows refill as `replace` does."""
    n_experts, real = turn.numel(), real.view(-1, 1)
    closed = own_experts(plain) | ~awake
    spare, order = torch.sort(
        plain.ranking.detach().masked_fill(closed, -torch.inf), dim=-1, descending=True, stable=True
    )
    # What is not there to be taken has gone before the first turn.
    spare_turn = turn[order].masked_fill(spare == -torch.inf, -1)
    own_turn = turn[plain.indices]
    counts = []
    for start in range(0, n_experts + 1, _AT_ONCE):
        end = min(start + _AT_ONCE, n_experts + 1)
        after = torch.arange(start, end, device=turn.device).view(-1, 1, 1)
        stays = own_turn >= after  # [turns, T, k]
        left = spare_turn >= after  # [turns, T, E]
        free = (~stays).sum(dim=-1, keepdim=True)
        taken = left & (left.cumsum(dim=-1, dtype=torch.int32) <= free)
        counts.append(
            sum_by_expert(plain.indices.expand_as(stays), stays & real, n_experts)
            + sum_by_expert(order.expand_as(taken), taken & real, n_experts)
        )
    return torch.cat(counts)
