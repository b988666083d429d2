"""Plain top-k: what every other policy is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from costprof.costmodel.table import CostTable
from costprof.routing.contract import Gate, Rows, Selection, SystemState


@dataclass(frozen=True, slots=True)
class TopK:
    """Each row keeps the experts its gate ranks first."""

    @property
    def neutral(self) -> bool:
        """Always: this is the neutral setting of all policies."""
        return True

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
        """Return `plain`."""
        return plain, history
