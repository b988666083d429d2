"""Leave out experts that weigh little beside the row's first (NAEE, arXiv 2402.14800)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from costprof.costmodel.table import CostTable
from costprof.routing.contract import Gate, Rows, Selection, SystemState
from costprof.routing.parameters import set_number
from costprof.routing.reselection import finite_rows, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip:
    """Slot j stays empty where its score is below `beta` times that of the row's first expert.

    That is the dynamic skipping of Lu et al. (NAEE, arXiv 2402.14800). They skip the second of two
    experts under a `beta` per layer, the median ratio of calibration data; here it goes for all k
    slots and is given. Promised: every row keeps its first expert, and every expert of at least
    `beta` times its score. A row is routed by itself, so rows of prompts are changed too.

    Args:
        beta: In [0, 1]; 0 changes nothing.

    Raises:
        InputError: a parameter outside its range.
    """

    beta: float = 0.0

    def __post_init__(self) -> None:
        set_number(self, "beta", 0.0, 1.0)

    @property
    def neutral(self) -> bool:
        """True where nothing can be below the threshold."""
        return self.beta == 0.0

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
        """Return the rows without their weak experts; only `rows` are read."""
        scores = plain.scores.gather(-1, plain.indices)
        weak = scores < self.beta * scores[:, :1]
        return replace(plain, weak & finite_rows(plain, rows.real).unsqueeze(-1)), history
