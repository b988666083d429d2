"""Keep each row's first experts and reuse what the batch has awake (OEA, arXiv 2511.02237)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from costprof.costmodel.table import CostTable
from costprof.routing.contract import Gate, Rows, Selection, SystemState
from costprof.routing.parameters import set_whole
from costprof.routing.reselection import batch_rows, first_slots, restrict, wanted_by


@dataclass(frozen=True, slots=True, kw_only=True)
class OEA:
    """Opportunistic expert activation: rows wake their first `k0` experts, and share the rest.

    The experts awake are the union of what rows keep: the first `k0` of each. Every row then fills
    up to k in rank order from that union (arXiv 2511.02237). Where we differ: only real decode
    rows alone of their sequence are changed, all k experts of the others belong to the union; and
    weights of a changed row sum to what they did before.

    Promised: every row keeps its first `k0` experts; no expert wakes that plain top-k leaves
    asleep.

    Args:
        k0: At least 1; None, or the gate's own top_k or more, changes nothing.

    Raises:
        InputError: a parameter outside its range.
    """

    k0: int | None = None

    def __post_init__(self) -> None:
        set_whole(self, "k0", 1, optional=True)

    @property
    def neutral(self) -> bool:
        """True without a `k0`."""
        return self.k0 is None

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
        """Return the selection from the union; only `rows` are read."""
        if self.k0 is None or self.k0 >= gate.top_k:
            return plain, history
        changeable = batch_rows(plain, rows)
        keeps = first_slots(plain, self.k0) | ~changeable.unsqueeze(-1)
        union = wanted_by(plain, keeps & rows.real.unsqueeze(-1))
        return restrict(plain, union, changeable), history
