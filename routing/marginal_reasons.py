"""Why `Marginal` let an expert go, or kept it, in the terms it decides by."""

from __future__ import annotations

from costprof.costmodel.table import CostTable
from costprof.routing.contract import Rows, Selection
from costprof.routing.policies.marginal import Marginal
from costprof.routing.pruning import ONE, slack_mass, sum_by_expert
from costprof.routing.reselection import batch_rows


class MarginalReasons:
    """What `Marginal` had at stake in one batch, in words."""

    def __init__(self, policy: Marginal, plain: Selection, *, rows: Rows, table: CostTable) -> None:
        """Look at the batch `plain`."""
        self._policy = policy
        self._stakes = policy.stakes(plain, rows, table)
        self._indices = plain.indices
        self._harm = self._stakes.harm / ONE / rows.real.sum()
        fixed = ~batch_rows(plain, rows, prefill=policy.prefill).unsqueeze(-1)
        kept = self._stakes.kept & fixed
        self._unchanged = sum_by_expert(plain.indices, kept, table.n_experts)

    def why(self, row: int, expert: int, *, kept: bool) -> str:
        """Return why `expert`, of the top-k of `row`, was `kept` or went, after a colon."""
        harm, saving = float(self._harm[expert]), float(self._stakes.saving[expert])
        stake = f"harm {harm:.2g}, saving {saving:.2%} of the layer's cost"
        if saving > 0.0:
            stake += f", harm / saving {harm / saving:.2g}, lam {self._policy.lam:g}"
        if kept:
            return f"{self._bar(row, expert)} ({stake})"
        return f"{stake}; it went for the budget" if self._too_harmful(expert) else stake

    def _too_harmful(self, expert: int) -> bool:
        return float(self._harm[expert]) >= self._policy.lam * float(self._stakes.saving[expert])

    def _bar(self, row: int, expert: int) -> str:
        """What kept `expert`, the strictest first."""
        keepers, unchanged = int(self._stakes.keepers[expert]), int(self._unchanged[expert])
        if unchanged:
            return f"of the rows that use it {unchanged} may not be changed"
        if keepers:
            return f"of the rows that use it {keepers} have it first, and keep it"
        if float(self._stakes.saving[expert]) <= 0.0:
            return "its tokens cost as much elsewhere"
        aimed = self._policy.budget < 1.0
        if self._too_harmful(expert) and not aimed:
            return "that is more harm than lam allows"
        if int(self._stakes.rank[expert]) == len(self._stakes.rank):
            most = 1.0 - self._policy.q
            mine = int((self._stakes.share[row] * (self._indices[row] == expert)).sum())
            who = "the row" if mine > slack_mass(self._policy.q) else "some row"
            return f"{who} would lose more than {most:.0%} of its gate mass, which q forbids"
        if self._too_harmful(expert):
            return "that is more harm than lam allows, and the budget is met"
        return "with it gone as well the layer would be no cheaper"
