"""From plain top-k to another choice: which slots lose their expert, and what they get instead.

Nothing here waits for the device or has a shape that depends on data, so a policy built of it can
be captured in a CUDA graph.

T is rows, E experts, k slots a row.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from costprof.core.errors import InputError
from costprof.routing.contract import Gate, Rows, Selection
from costprof.routing.gate import gate_logits, gate_ranking, gate_scores
from costprof.routing.pruning import ONE, gate_shares, sum_by_expert

_CLOSED = -256.0
"""Added to a closed expert's score while groups are chosen: groups with more open ones come first,
and unlike -inf it leaves their order among themselves."""

_LARGE = 2.0**100
"""Scores times this have the same quotients bit for bit, and a sum that is no denormal."""


def finite_rows(plain: Selection, rows: Tensor) -> Tensor:
    """Those of `rows` [T] bool whose scores are finite; others must not steer anything."""
    return rows & plain.scores.isfinite().all(dim=-1)


def batch_rows(plain: Selection, rows: Rows, *, prefill: bool = False) -> Tensor:
    """Rows [T] bool that may be routed by what else is in the batch, see `Rows.lone_decode`."""
    return finite_rows(plain, rows.real if prefill else rows.lone_decode())


def first_slots(plain: Selection, n: int) -> Tensor:
    """[T, k] bool, True in each row's first `n` slots."""
    slots = torch.arange(plain.indices.shape[-1], device=plain.indices.device)
    return (slots < n).expand_as(plain.indices)


def wanted_by(plain: Selection, slots: Tensor) -> Tensor:
    """Experts [E] bool that some of the `slots` [T, k] bool hold."""
    return sum_by_expert(plain.indices, slots, plain.scores.shape[-1]) > 0


def own_experts(plain: Selection) -> Tensor:
    """[T, E] bool, the experts of each row's plain choice."""
    return torch.zeros_like(plain.ranking, dtype=torch.bool).scatter_(-1, plain.indices, True)


def replace(
    plain: Selection, lost: Tensor, spare: Tensor | None = None, *, by: Tensor | None = None
) -> Selection:
    """The selection after slots `lost` [T, k] gave up their expert.

    They get the row's next experts by rank (the gate's, or that of `by` [T, E]; of equals the one
    of the lowest number) among `spare` ([E] or [T, E] bool) that it does not have; without any, or
    without `spare`, they stay empty.
    Other slots keep expert and place. Weights of a changed row are those of its experts' scores,
    scaled to the sum of its plain weights; a row that lost nothing keeps its own bit for bit.
    """
    indices, used = plain.indices, ~lost
    if spare is not None:
        closed = own_experts(plain) | ~spare
        order = plain.ranking if by is None else by
        best, values = _first_largest(order.masked_fill(closed, -torch.inf), indices.shape[-1])
        nth = (lost.cumsum(dim=-1) - 1).clamp_min(0)
        indices = torch.where(lost, best.gather(-1, nth), indices)
        used = used | (values.gather(-1, nth) > -torch.inf)
    used = used & plain.used
    chosen = (plain.scores.gather(-1, indices) * _LARGE).masked_fill(~used, 0.0)
    total = chosen.sum(dim=-1, keepdim=True)
    # Where all that is left has a score of 0, its experts weigh the same.
    chosen = torch.where(total > 0, chosen, used.to(chosen.dtype))
    scaled = chosen / chosen.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(chosen.dtype).tiny)
    scaled = scaled * plain.weights.sum(dim=-1, keepdim=True)
    changed = lost.any(dim=-1, keepdim=True)
    return Selection(
        scores=plain.scores,
        ranking=plain.ranking,
        indices=indices,
        weights=torch.where(changed, scaled, plain.weights),
        used=used,
        gate_mass_lost=(gate_shares(plain) * lost).sum(dim=-1).double() / ONE,
    )


def _first_largest(values: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Places and values [T, n] of the `n` largest of each row, of equals the lowest place first.

    Top-k alone takes any of them. A key is a float's bits, in the order of the floats, above a
    place counted from the end: no two are equal, so the largest are those of compiled code too.
    """
    bits = (values.detach().float() + 0.0).view(torch.int32).long()  # -0 is 0
    last = values.shape[-1] - 1
    from_end = torch.arange(last, -1, -1, device=values.device)
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)) * (1 << 32) + from_end
    places = last - (keys.topk(n, dim=-1).values & 0xFFFFFFFF)
    return places, values.gather(-1, places)


def restrict(plain: Selection, kept: Tensor, changeable: Tensor) -> Selection:
    """The selection of `changeable` [T] rows from the experts `kept` [E] alone.

    It is the top-k of each such row's ranking among them.
    """
    lost = changeable.unsqueeze(-1) & ~kept[plain.indices]
    return replace(plain, lost, kept)


def close(plain: Selection, closed: Tensor, changeable: Tensor, gate: Gate) -> Selection:
    """The selection of `changeable` [T] rows had the experts `closed` [E] never existed.

    Unlike `restrict` it chooses the gate's groups anew, so every row finds an expert as long as
    one is open. Experts that stay a row's own keep their place.
    """
    ranking = gate_ranking(torch.where(closed, plain.scores + _CLOSED, plain.scores), gate)
    return rerank(plain, ranking.masked_fill(closed, -torch.inf), changeable)


def rerank(plain: Selection, ranking: Tensor, changeable: Tensor) -> Selection:
    """The selection of `changeable` [T] rows by another `ranking` [T, E].

    Weights are of the plain scores; -inf in `ranking` is never chosen.
    """
    least = ranking.topk(plain.indices.shape[-1], dim=-1).values[:, -1:]
    closed = ranking == -torch.inf
    # By value, not by what top-k returns: in a tie a row keeps what it has.
    out = (ranking < least) | closed
    lost = changeable.unsqueeze(-1) & out.gather(-1, plain.indices)
    return replace(plain, lost, ~out, by=ranking)


def shifted_ranking(plain: Selection, shift: Tensor, gate: Gate) -> Tensor:
    """What the gate would choose by [T, E], were `shift` [E] or [T, E] added to its logits.

    Where a row's shift is the same for all experts its ranking is the plain one, bit for bit.
    """
    shift = shift.to(plain.scores.dtype)
    moved = gate_ranking(gate_scores(gate_logits(plain.scores, gate) + shift, gate), gate)
    flat = shift.amax(dim=-1, keepdim=True) == shift.amin(dim=-1, keepdim=True)
    return torch.where(flat, plain.ranking, moved)


@cache
def expert_mask(experts: tuple[int, ...], n_experts: int, device: torch.device) -> Tensor:
    """[E] bool, True for `experts`; shared, so never written into.

    Kept for good: making it anew would copy from the host, which a capture forbids, and a captured
    graph goes on reading the one it met. A few sets are in use at a time, at a byte an expert.

    Raises:
        InputError: there is no such expert.
    """
    if experts and max(experts) >= n_experts:
        raise InputError(
            f"expert {max(experts)} of {n_experts}",
            "no row was routed",
            f"use 0 … {n_experts - 1}",
        )
    with torch.inference_mode(False):  # what is kept may later be part of a graph with gradients
        mask = torch.zeros(n_experts, dtype=torch.bool)
        mask[list(experts)] = True
        return mask.to(device)
