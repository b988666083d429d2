"""What a batch puts at stake, expert by expert: what `Marginal` decides on, and is explained by.

T is rows, E experts, k slots a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from costprof.costmodel.table import CostTable
from costprof.routing.contract import Selection
from costprof.routing.objective import Objective
from costprof.routing.pruning import (
    drop_ranks,
    gate_shares,
    must_keep,
    saliency,
    slack_mass,
    sum_by_expert,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stakes:
    """Harm and saving of each expert's going, and what forbids it.

    Attributes:
        counts: [E] int64, rows of plain top-k that are real.
        kept: [T, k] bool, slots that stay whatever they cost.
        keepers: [E] int64, of those slots.
        share: [T, k] int64, of a row's gate mass in units of 1 / `pruning.ONE`; 0 in rows that may
            not be changed.
        harm: [E] int64, the sum of `pruning.saliency` over its rows.
        saving: [E] float64, a share of the layer's cost.
        price: [E] float64, harm over saving; infinite where the expert may not go.
        rank: [E] int64, in which order experts may go (`pruning.drop_ranks`); E for never.
    """

    counts: Tensor
    kept: Tensor
    keepers: Tensor
    share: Tensor
    harm: Tensor
    saving: Tensor
    price: Tensor
    rank: Tensor

    @classmethod
    def of(
        cls,
        plain: Selection,
        changeable: Tensor,
        real: Tensor,
        *,
        q: float,
        objective: Objective,
        table: CostTable,
    ) -> Stakes:
        """Return the stakes of `plain`, of whose `real` rows [T] the `changeable` [T] may change.

        Args:
            q: Share of its gate mass every row keeps.
            objective: What is to be saved, by `table`.
        """
        n_experts, fixed = table.n_experts, ~changeable.unsqueeze(-1)
        share = gate_shares(plain).masked_fill(fixed, 0)
        kept = must_keep(plain, changeable, real)
        used = real.unsqueeze(-1).expand_as(kept)
        sums = sum_by_expert(
            plain.indices.expand(2, -1, -1),
            torch.stack([kept.to(torch.int64), used.to(torch.int64)]),
            n_experts,
        )
        keepers, counts = sums.unbind(0)
        suffers = saliency(plain, counts > 0).masked_fill(fixed, 0)
        harm = sum_by_expert(plain.indices, suffers, n_experts)
        saving = _savings(objective, table, counts)
        price = torch.where((keepers == 0) & (saving > 0.0), harm / saving, torch.inf)
        return cls(
            counts=counts,
            kept=kept,
            keepers=keepers,
            share=share,
            harm=harm,
            saving=saving,
            price=price,
            rank=drop_ranks(price, plain.indices, share, slack_mass(q)),
        )


def _savings(objective: Objective, table: CostTable, counts: Tensor) -> Tensor:
    """What each expert's going saves, [E] float64, as a share of the layer's cost."""
    both = torch.stack([counts, counts + 1])
    own, another = objective.experts(both, table, layer=counts)
    active = counts > 0
    a_token = (another - own).masked_fill(~active, 0.0).sum() / active.sum().clamp_min(1)
    saving: Tensor = own - counts * a_token.clamp_min(0.0)
    return saving
