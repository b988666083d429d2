"""`marginal`'s decision on a GPU: one launch, and nothing waits for the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from costprof.costmodel.lookup import DenseLookup
from costprof.routing.contract import Selection
from costprof.routing.kernels.marginal_triton import decide_marginal
from costprof.routing.kernels.terms import Terms, decided
from costprof.routing.pruning import ONE


class Block(NamedTuple):
    """Rows walked at once, and warps: what spills no registers, or on sm_80 a few."""

    rows: int
    warps: int


def block_for(width: int) -> Block:
    """Return the block for `width` experts, a power of two."""
    if width <= 64:
        return Block(8, 8)
    return Block(4, 8) if width <= 128 else Block(2, 8)


def decide(
    plain: Selection,
    lookup: DenseLookup,
    terms: Terms,
    *,
    real: Tensor | None,
    changeable: Tensor | None,
) -> Selection:
    """Return the selection, counts with it; arguments as of `marginal_cpu.decide`.

    Nothing waits for the device.
    """
    rows, top_k = plain.indices.shape
    experts = plain.scores.shape[1]
    device = plain.scores.device
    indices, weights = torch.empty_like(plain.indices), torch.empty_like(plain.weights)
    used = torch.empty(rows, top_k, dtype=torch.bool, device=device)
    lost = torch.empty(rows, dtype=torch.float64, device=device)
    counts = torch.empty(experts, dtype=torch.int64, device=device)
    share = torch.empty_like(plain.indices)
    prices = torch.empty(2, experts, dtype=torch.float64, device=device)
    flags = torch.empty(2, experts, dtype=torch.int32, device=device)
    described = real is not None or changeable is not None
    width = triton.next_power_of_2(max(experts, 16))
    block = block_for(width)
    everyone = torch.ones(rows, dtype=torch.bool, device=device) if described else used
    decide_marginal[(1,)](
        plain.scores.contiguous(),
        plain.ranking.contiguous(),
        plain.indices.contiguous(),
        plain.weights.contiguous(),
        (everyone if real is None else real.contiguous()).view(torch.int8),
        (everyone if changeable is None else changeable.contiguous()).view(torch.int8),
        lookup.values,
        lookup.class_index,
        lookup.slope,
        lookup.base,
        indices,
        weights,
        used.view(torch.int8),
        lost,
        counts,
        share,
        prices[0],
        prices[1],
        flags[0],
        flags[1],
        rows,
        experts,
        lookup.n_classes,
        lookup.max_tokens,
        terms.slack,
        terms.first_weight,
        terms.second_weight,
        terms.lam,
        terms.budget,
        TOP_K=top_k,
        BLOCK_T=block.rows,
        BLOCK_E=width,
        ONE=float(ONE),
        DESCRIBED=described,
        BUDGETED=terms.budget < 1.0,
        num_warps=block.warps,
    )
    return decided(plain, indices, weights, used, lost, counts)
