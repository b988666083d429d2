"""Plain top-k with a smaller k: the baseline that every policy has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from costprof.costmodel.table import CostTable
from costprof.routing.contract import Gate, Rows, Selection, SystemState
from costprof.routing.parameters import set_whole
from costprof.routing.reselection import finite_rows, first_slots, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Fewer:
    """Each row keeps the first `k` experts of its ranking.

    Weights are scaled to what the row's top-k weights summed to, also under a gate that does not
    renormalise. A row is routed by itself, so rows of prompts are changed too. LExI and Ban&Pick
    choose such a k per layer: give each layer a policy of its own.

    Args:
        k: At least 1; None, or the gate's own top_k or more, changes nothing.

    Raises:
        InputError: a parameter outside its range.
    """

    k: int | None = None

    def __post_init__(self) -> None:
        set_whole(self, "k", 1, optional=True)

    @property
    def neutral(self) -> bool:
        """True without a `k`."""
        return self.k is None

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
        """Return the smaller top-k; only `rows` are read."""
        if self.k is None or self.k >= gate.top_k:
            return plain, history
        real = finite_rows(plain, rows.real).unsqueeze(-1)
        return replace(plain, real & ~first_slots(plain, self.k)), history
