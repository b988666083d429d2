"""From router logits to the gate's own choice: scores, ranking, top-k, weights."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from costprof.core.errors import InputError
from costprof.routing.contract import Gate, Selection

_TINY = 1e-20
"""Keeps a row whose scores all underflow at weight 0; adds nothing to any other sum."""


def gate_scores(logits: Tensor, gate: Gate) -> Tensor:
    """Scores [T, E] in float32 of `logits` [T, E], each row's the same in any batch.

    On a CPU torch's sigmoid rounds otherwise in the vectors of a tensor than in what is left over
    of it. In float64 it does as well, in the last bit: that is rounded away, except for about one
    value in 2^29.
    """
    logits = logits.float()
    if gate.score == "softmax":
        return torch.softmax(logits, dim=-1)
    return torch.sigmoid(logits.double()).float()


def gate_logits(scores: Tensor, gate: Gate) -> Tensor:
    """Logits [T, E] that have these `scores`, up to a constant per row under softmax."""
    scores = scores.clamp_min(torch.finfo(scores.dtype).tiny)
    if gate.score == "softmax":
        return scores.log()
    # 1 - score is exact for scores above 1/2; the least gap below 1 stands for "saturated".
    return scores.log() - (1.0 - scores).clamp_min(torch.finfo(scores.dtype).eps / 2).log()


def gate_ranking(scores: Tensor, gate: Gate) -> Tensor:
    """What experts are chosen by: `scores` [T, E] plus bias, -inf outside the chosen groups.

    Raises:
        InputError: the gate does not fit E experts.
    """
    check_gate(gate, scores.shape[-1])
    ranking = scores if gate.bias is None else scores + gate.bias
    if gate.n_group == 1:
        return ranking
    size = ranking.shape[1] // gate.n_group
    grouped = ranking.view(ranking.shape[0], gate.n_group, size)
    best = grouped.topk(min(gate.group_top, grouped.shape[-1]), dim=-1).values.sum(-1)
    chosen = best.topk(gate.topk_group, dim=-1, sorted=False).indices
    forbidden = torch.ones_like(best, dtype=torch.bool).scatter_(-1, chosen, False)
    return grouped.masked_fill(forbidden.unsqueeze(-1), -torch.inf).view_as(ranking)


def gate_weights(weights: Tensor, gate: Gate) -> Tensor:
    """Weights [T, k] of experts whose scores are `weights` [T, k]."""
    if gate.renormalise:
        total = weights.sum(dim=-1, keepdim=True)
        # A softmax not biased gives its best experts about 1 / E or more: no sum can underflow.
        safe = gate.score == "softmax" and gate.bias is None
        weights = weights / (total if safe else total + _TINY)
    return weights if gate.scaling == 1.0 else weights * gate.scaling


def select(logits: Tensor, gate: Gate) -> Selection:
    """Plain top-k of `logits` [T, E]: every slot used, nothing lost.

    Raises:
        InputError: `logits` are not a matrix, or the gate does not fit them.
    """
    if logits.dim() != 2 or not logits.is_floating_point():
        raise InputError(
            f"router logits are {logits.dtype} {list(logits.shape)}",
            "no expert was chosen",
            "give floating-point logits of shape [rows, experts]",
        )
    scores = gate_scores(logits, gate)
    ranking = gate_ranking(scores, gate)
    best, indices = ranking.topk(gate.top_k, dim=-1)
    chosen = best if ranking is scores else scores.gather(-1, indices)
    used, lost = untouched(logits.shape[0], gate.top_k, logits.device)
    return Selection(
        scores=scores,
        ranking=ranking,
        indices=indices,
        weights=gate_weights(chosen, gate),
        used=used,
        gate_mass_lost=lost,
    )


def untouched(rows: int, top_k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return `used` and `gate_mass_lost` of plain top-k, on a CPU made once a size.

    Shared, so never written into. A trace of `torch.compile` makes its own, and so does each call
    on a GPU: a captured graph would go on reading what a cache has long dropped.
    """
    shared = device.type == "cpu" and not torch.compiler.is_compiling()
    return (_untouched if shared else _new_untouched)(rows, top_k, device)


def _new_untouched(rows: int, top_k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    used = torch.ones(rows, top_k, dtype=torch.bool, device=device)
    return used, torch.zeros(rows, dtype=torch.float64, device=device)


@functools.lru_cache(maxsize=64)
def _untouched(rows: int, top_k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        return _new_untouched(rows, top_k, device)


def check_gate(gate: Gate, n_experts: int) -> None:
    """Check that `gate` can choose among `n_experts`.

    Raises:
        InputError: it cannot.
    """
    if n_experts % gate.n_group:
        raise InputError(
            f"{n_experts} experts in {gate.n_group} groups",
            "the groups would differ in size",
            "use a number of groups that divides the number of experts",
        )
    allowed = n_experts // gate.n_group * gate.topk_group
    if gate.top_k > allowed:
        raise InputError(
            f"top_k is {gate.top_k} with {allowed} experts to choose from",
            "no row can be routed",
            "use a smaller top_k or more groups",
        )
    if gate.bias is not None and gate.bias.shape != (n_experts,):
        raise InputError(
            f"the gate's bias has shape {list(gate.bias.shape)}",
            f"it does not fit {n_experts} experts",
            f"give a bias of shape [{n_experts}]",
        )
