"""Drop, per batch, the experts that cost most for the good they do, by the measured table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from costprof.costmodel.table import CostTable
from costprof.routing.cheapest import cheapest_prefix, prices_differ, turns
from costprof.routing.contract import Gate, Rows, Selection, SystemState
from costprof.routing.kernels.dispatch import compiled_decision
from costprof.routing.kernels.terms import Decide, Terms
from costprof.routing.objective import Objective
from costprof.routing.parameters import set_flag, set_number
from costprof.routing.price_columns import PriceColumns, price_columns
from costprof.routing.pruning import ONE, slack_mass, sum_by_expert
from costprof.routing.reselection import batch_rows, replace
from costprof.routing.stakes import Stakes

_LATENCY = Objective()


@dataclass(frozen=True, slots=True, kw_only=True)
class Marginal:
    """Trade gate mass for layer cost, priced by the table.

    A batch wakes the union of its rows' experts; at decode sizes each costs nearly as much for one
    row as for ten. What an expert's going saves is its price less what its tokens cost elsewhere
    (the mean price of one more token to an active expert). Its harm is the sum over its rows of its
    share of the row's gate mass times what of that share the next best expert that is awake would
    not make up for (`pruning.saliency`): many small shares do less harm than one large one, and
    little is lost where the next expert is nearly as good. Experts are taken in the order of harm
    over saving, as far as no row loses more than `1 - q` of its mass (`pruning.drop_ranks`). As
    prices add up, `lam · cost saved - harm`, both as shares (of plain top-k's cost, of a harm of 1
    to every real row), is largest where each expert goes whose harm is below `lam` times its
    saving, counting each row's first replacement only: no search is needed. For a `budget` experts
    go in that order until it is met. Rows that lose an expert refill in rank order from the experts
    still active (as OEA does, arXiv 2511.02237). Weights of a changed row are scaled so that they
    sum to what its plain top-k's summed to.

    Where experts are of several classes, what one's tokens cost elsewhere depends on where they go.
    Of the experts that would go, those that go for the budget first, then in the order of harm over
    saving, only as many do as make the layer cheapest, the fewest of equals (`cheapest`).

    Promised to every row: it keeps its first expert and at least `q` of its own top-k gate mass
    (what it refills with does not count). Where anything changes the predicted cost is below plain
    top-k's. More `lam` (at one `budget`), or less `budget` (at a `lam` of 0), drops a superset. It
    costs no more where experts are of several classes, or of one whose price is a wake-up and so
    much a token, the weight on balance being 0. Of experts of one class with any other price, or
    under weight on balance, it may cost more again, and where that is no less than plain top-k's
    nothing is dropped.

    The cost is any `Objective`. Heat and stored bytes are prices of an expert by its own tokens, as
    latency and energy are: of these any two at once are decided on by compiled code
    (`price_columns`). Three of them, or any weight on balance, are left to tensors, as are experts
    of several classes on a GPU.

    Only real decode rows that are alone of their sequence in the batch are changed
    (`Rows.lone_decode`); experts the other rows need stay, and can be refilled from. Nothing here
    waits for the device or has a shape that depends on values, so it can be captured in a graph.

    Args:
        lam: Harm to a mean row one would do for the layer's whole cost; 0 does none. From 0.01 to
            0.1 on decode batches of 16 to 64, in the model this was tried on (docs/routing.md).
        budget: Cost aimed at, as a share of plain top-k's; where the bound `q` forbids reaching
            it, all goes that may. 1 is no aim.
        q: Share of its gate mass every row keeps, in [0, 1].
        objective: The cost; `Objective(latency=0, memory=1)` is bytes.
        prefill: Change all real rows, also those of prompts and speculated tokens. A row's experts
            may then depend on later tokens of its own sequence: not what a causal model computes.

    Raises:
        InputError: a parameter outside its range.
    """

    lam: float = 0.0
    budget: float = 1.0
    q: float = 0.7
    objective: Objective = _LATENCY
    prefill: bool = False

    def __post_init__(self) -> None:
        set_number(self, "lam")
        set_number(self, "budget", 0.0, 1.0)
        set_number(self, "q", 0.0, 1.0)
        set_flag(self, "prefill")

    @property
    def neutral(self) -> bool:
        """True where nothing is traded (`lam` 0 and `budget` 1) or may be lost (`q` 1)."""
        return (self.lam == 0.0 and self.budget == 1.0) or self.q == 1.0

    def choose(
        self,
        plain: Selection,
        *,
        table: CostTable,
        state: SystemState,
        rows: Rows,
        gate: Gate,
        history: Any,
    ) -> tuple[Selection, Any]:
        """Return what is left of `plain`; `state` and `history` are not read.

        Raises:
            TableError: the table does not price the objective.
        """
        columns = price_columns(self.objective, table, plain.scores.device)
        if columns is not None:
            decide = compiled_decision(plain, search=columns.lookup.n_classes > 1)
            if decide is not None:
                return self._compiled(decide, plain, columns, rows), history
        stakes = self.stakes(plain, rows, table)
        counts, price, rank = stakes.counts, stakes.price, stakes.rank
        gone, aimed = self._gone(stakes, rows.real.sum())
        if prices_differ(table):
            turn = turns(gone, aimed, rank, price)
            gone = cheapest_prefix(plain, turn, counts, rows.real, self.objective, table)
            return replace(plain, gone[plain.indices], (counts > 0) & ~gone), history

        lost = gone[plain.indices]
        chosen = replace(plain, lost, (counts > 0) & ~gone)
        used = chosen.used & rows.real.unsqueeze(-1)
        after = sum_by_expert(chosen.indices, used.to(torch.int64), table.n_experts)
        cost = self.objective.layer(torch.stack([after, counts]), table, plain=counts)
        return replace(plain, lost & (cost[0] < cost[1]), (counts > 0) & ~gone), history

    def _compiled(
        self, decide: Decide, plain: Selection, columns: PriceColumns, rows: Rows
    ) -> Selection:
        """Choose by compiled code, which does the same."""
        real = None if rows.decode_only else rows.real
        changeable = real if self.prefill or real is None else rows.lone_decode()
        return decide(
            plain,
            columns.lookup,
            Terms(*columns.weights, self.lam, self.budget, slack_mass(self.q)),
            real=real,
            changeable=changeable,
        )

    def stakes(self, plain: Selection, rows: Rows, table: CostTable) -> Stakes:
        """Return what the batch `plain` puts at stake."""
        # A row that is not finite must not steer the others.
        changeable = batch_rows(plain, rows, prefill=self.prefill)
        return Stakes.of(
            plain, changeable, rows.real, q=self.q, objective=self.objective, table=table
        )

    def _gone(self, stakes: Stakes, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Which experts go, and which of them for the budget, [E] bool.

        They are of those whose `rank` says that they may.
        """
        price, rank = stakes.price, stakes.rank
        may = rank < rank.numel()
        gone, aimed = price < self.lam * ONE * rows, torch.zeros_like(may)
        if self.budget < 1.0:
            order = torch.argsort(rank, stable=True)
            saved = (stakes.saving * may)[order]
            unmet = saved.cumsum(0) - saved < 1.0 - self.budget
            aimed = aimed.scatter(0, order, unmet) & may
        return (gone & may) | aimed, aimed
