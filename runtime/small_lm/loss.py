"""What training minimises: task + balance + λ · expected layer cost.

The cost is what a decode batch of `batch` tokens is expected to pay by a cost table: an expert is
awake with P = 1 - (1 - p)^batch, p the share of tokens that choose it, and then priced at the
tokens it can expect. What is counted is the hard choice; the gradient flows through the gate's
scores (straight-through), so it is a push towards choosing alike, not an exact derivative.
"""

from __future__ import annotations

import torch
from torch import Tensor

from costprof.costmodel.table import CostTable
from costprof.routing.contract import Selection


def balance_loss(chosen: Selection) -> Tensor:
    """E · Σ f · P of one layer: 1 where all experts are chosen alike (arXiv 2101.03961, eq. 4).

    f is the share of slots an expert got, P its mean score; the gradient flows through P.
    """
    n_experts = chosen.scores.shape[-1]
    return n_experts * (_chosen_share(chosen) * chosen.scores.mean(dim=0)).sum()


def cost_loss(chosen: Selection, table: CostTable, *, batch: int) -> Tensor:
    """Expected latency of one layer's decode batch, in shares of one that wakes all alike."""
    k = chosen.indices.shape[-1]
    soft = k * chosen.scores.mean(dim=0)
    p = (soft + (k * _chosen_share(chosen) - soft).detach()).clamp(0.0, 1.0 - 1e-6)
    even = torch.full_like(p, k / p.numel())
    return _expected_us(p, table, batch) / _expected_us(even, table, batch)


def _expected_us(p: Tensor, table: CostTable, batch: int) -> Tensor:
    """Base and Σ P(awake) · price at the tokens expected when awake; `p` is [E]."""
    awake = 1.0 - (1.0 - p) ** batch
    tokens = (batch * p / awake.clamp_min(1e-9)).detach().round().long().clamp(1, batch)
    price = table.expert_costs(tokens).latency_us
    base = table.layer_cost(torch.zeros_like(tokens)).latency_us
    return base + (awake * price).sum()


def _chosen_share(chosen: Selection) -> Tensor:
    """Share of all slots each expert got, [E]; no gradient."""
    n_experts = chosen.scores.shape[-1]
    return torch.bincount(chosen.indices.flatten(), minlength=n_experts) / chosen.indices.numel()
