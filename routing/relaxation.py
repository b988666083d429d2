"""What top-k routing would cost in expectation, with a gradient in the logits.

Top-k has none, and counts summed from probabilities (`Σ_t k · p_te`) mislead: beyond one expected
token they no longer see that an expert could stay asleep, and they call a row cheap for putting
all its k on one expert. Two steps avoid both:

1. Row `t` uses expert `e` with probability `π_te = σ(z_te - θ_t)`, θ_t such that a row uses k.
   This is top-k smoothed by binary entropy (the limited multi-label projection, Amos et al. 2019,
   arXiv 1906.08707) at temperature 1, the router's own scale.
2. Rows independent, an expert wakes with probability `P_e = 1 - Π_t (1 - π_te)` and then has
   `n_e / P_e` tokens on average, `n_e = Σ_t π_te`. The expected price `P_e · price(n_e / P_e)` is
   exact where a price is affine in the tokens of an awake expert.

For decode batches of another size than the rows at hand, step 2 alone: B rows drawn from them use
expert `e` with probability `p_e` each, `P_e = 1 - (1 - p_e)^B`, `n_e = B · p_e`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from costprof.costmodel.table import CostTable, LayerCost
from costprof.routing.contract import Gate
from costprof.routing.gate import gate_ranking, gate_scores

_BISECTIONS = 24
_ALMOST_ONE = 1.0 - 1e-9


def allowed_experts(logits: Tensor, gate: Gate) -> Tensor:
    """Experts [T, E] bool that the gate's groups leave each row of `logits` [T, E]."""
    return gate_ranking(gate_scores(logits, gate), gate) > -torch.inf


def inclusion(logits: Tensor, allowed: Tensor, top_k: int) -> Tensor:
    """Probability π [T, E] float64 that a row uses an expert; each row sums to `top_k`.

    Args:
        logits: [T, E].
        allowed: [T, E] bool, at least `top_k` of each row True; elsewhere π is 0.
    """
    z = logits.double().masked_fill(~allowed, -torch.inf)
    with torch.no_grad():
        finite = z.masked_fill(~allowed, torch.nan)
        # Between these all allowed experts are in, or all are out.
        low = finite.nan_to_num(torch.inf).amin(-1, keepdim=True) - 40.0
        high = z.amax(-1, keepdim=True) + 40.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            too_many = torch.sigmoid(z - middle).sum(-1, keepdim=True) > top_k
            low, high = torch.where(too_many, middle, low), torch.where(too_many, high, middle)
        theta = (low + high) / 2
        use = torch.sigmoid(z - theta)
        slope = (use * (1 - use)).sum(-1, keepdim=True).clamp_min(1e-12)
    # One Newton step whose value is next to nothing carries the implicit gradient of θ.
    theta = theta + (torch.sigmoid(z - theta).sum(-1, keepdim=True) - top_k) / slope
    return torch.sigmoid(z - theta)


def expected_cost(use: Tensor, table: CostTable) -> LayerCost:
    """Expected price, scalars float64, of a layer whose rows use experts with `use` [T, E]."""
    asleep = torch.log1p(-use.clamp(max=_ALMOST_ONE)).sum(0).exp()
    return _expected(use.sum(0), asleep, table)


def expected_decode_cost(p: Tensor, table: CostTable, batch: int) -> LayerCost:
    """Expected price, scalars float64, of `batch` rows, each using experts as likely as `p` [E]."""
    p = p.double().clamp(0.0, _ALMOST_ONE)
    return _expected(batch * p, (1.0 - p) ** batch, table)


def _expected(tokens: Tensor, asleep: Tensor, table: CostTable) -> LayerCost:
    """Base and Σ P(awake) · price at the tokens expected of an awake expert; arguments [E]."""
    awake = (1.0 - asleep).clamp_min(1e-12)
    each = (tokens / awake).clamp_min(1.0)
    whole = each.detach().floor().to(torch.int64)
    low, high = table.expert_costs(whole), table.expert_costs(whole + 1)
    part = each - whole
    base = table.layer_cost(torch.zeros_like(whole))
    return LayerCost(
        latency_us=base.latency_us
        + (awake * (low.latency_us + part * (high.latency_us - low.latency_us))).sum(),
        energy_mj=base.energy_mj
        + (awake * (low.energy_mj + part * (high.energy_mj - low.energy_mj))).sum(),
    )
