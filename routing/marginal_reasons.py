"""Why `Marginal` let an expert go, or kept it, in the terms it decides by."""

from __future__ import annotations

import torch

from costprof.costmodel.table import CostTable
from costprof.routing.contract import Rows, Selection
from costprof.routing.policies.marginal import Marginal
from costprof.routing.pruning import (
    ONE,
    drop_ranks,
    gate_shares,
    must_keep,
    saliency,
    slack_mass,
    sum_by_expert,
)
from costprof.routing.reselection import batch_rows


class MarginalReasons:
    """What one batch puts at stake, expert by expert.

    T is rows, E experts, k slots a row.
    """

    def __init__(self, policy: Marginal, plain: Selection, *, rows: Rows, table: CostTable) -> None:
        """Work out harm, saving and promises of the batch `plain`."""
        n_experts = table.n_experts
        changeable = batch_rows(plain, rows, prefill=policy.prefill)
        real = rows.real.unsqueeze(-1).expand_as(plain.indices)
        counts = sum_by_expert(plain.indices, real, n_experts)
        fixed = changeable.logical_not().unsqueeze(-1)
        self._policy = policy
        self._slack = slack_mass(policy.q)
        self._share = gate_shares(plain).masked_fill(fixed, 0)
        keeps = must_keep(plain, changeable, rows.real)
        self._keepers = sum_by_expert(plain.indices, keeps, n_experts)
        self._unchanged = sum_by_expert(plain.indices, keeps & fixed, n_experts)
        suffers = saliency(plain, counts > 0).masked_fill(fixed, 0)
        harm = sum_by_expert(plain.indices, suffers, n_experts)
        self._harm = harm / ONE / rows.real.sum()
        self._saving = policy._savings(table, counts)
        may = (self._keepers == 0) & (self._saving > 0.0)
        price = (harm / self._saving).masked_fill(~may, torch.inf)
        self._rank = drop_ranks(price, plain.indices, self._share, self._slack)
        self._indices = plain.indices

    def why(self, row: int, expert: int, *, kept: bool) -> str:
        """Return why `expert`, of the top-k of `row`, was `kept` or went, after a colon."""
        harm, saving = float(self._harm[expert]), float(self._saving[expert])
        stake = f"harm {harm:.2g}, saving {saving:.2%} of the layer's cost"
        if saving > 0.0:
            stake += f", harm / saving {harm / saving:.2g}, lam {self._policy.lam:g}"
        if kept:
            return f"{self._bar(row, expert)} ({stake})"
        return f"{stake}; it went for the budget" if self._too_harmful(expert) else stake

    def _too_harmful(self, expert: int) -> bool:
        return float(self._harm[expert]) >= self._policy.lam * float(self._saving[expert])

    def _bar(self, row: int, expert: int) -> str:
        """What kept `expert`, the strictest first."""
        keepers, unchanged = int(self._keepers[expert]), int(self._unchanged[expert])
        if unchanged:
            return f"of the rows that use it {unchanged} may not be changed"
        if keepers:
            return f"of the rows that use it {keepers} have it first, and keep it"
        if float(self._saving[expert]) <= 0.0:
            return "its tokens cost as much elsewhere"
        aimed = self._policy.budget < 1.0
        if self._too_harmful(expert) and not aimed:
            return "that is more harm than lam allows"
        if int(self._rank[expert]) == len(self._rank):
            most = 1.0 - self._policy.q
            mine = int((self._share[row] * (self._indices[row] == expert)).sum())
            who = "the row" if mine > self._slack else "some row"
            return f"{who} would lose more than {most:.0%} of its gate mass, which q forbids"
        if self._too_harmful(expert):
            return "that is more harm than lam allows, and the budget is met"
        return "with it gone as well the layer would be no cheaper"
