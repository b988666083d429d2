"""Switch experts off: those named, or those a workload hardly asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from costprof.core.errors import InputError
from costprof.costmodel.table import CostTable
from costprof.routing.contract import Gate, Rows, Selection, SystemState
from costprof.routing.history import Usage, known
from costprof.routing.parameters import check_experts, set_number
from costprof.routing.pruning import sum_by_expert
from costprof.routing.reselection import close, expert_mask, finite_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Prune:
    """Rows choose as if the experts that are off never existed.

    For a constraint from outside: memory that holds only some experts, a device that failed. Off
    are the experts named, and the `share` of all experts that past batches asked for least (by
    plain top-k, so an expert that is off can come back). The gate's groups are chosen anew among
    what is left, so every row finds an expert.

    A row's experts depend on batches before, not on companions, so rows of prompts are changed
    too. Promised: no expert that is off is used. Rows have no say; see `Marginal` for what they
    can be promised instead.

    Args:
        off: Numbers of the experts that are off.
        share: Of all experts, in [0, 1]; at least one stays on.
        decay: Of the running use, in [0, 1].

    Raises:
        InputError: a parameter outside its range.
    """

    off: tuple[int, ...] = ()
    share: float = 0.0
    decay: float = 0.9

    def __post_init__(self) -> None:
        check_experts("off", self.off)
        set_number(self, "share", 0.0, 1.0)
        set_number(self, "decay", 0.0, 1.0)

    @property
    def neutral(self) -> bool:
        """True where no expert is off."""
        return not self.off and self.share == 0.0

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
        """Return the selection without the experts that are off, and what was asked for so far.

        Raises:
            InputError: an expert that is off does not exist, or none is on; the history is another
                policy's or another layer's.
        """
        n_experts, device = table.n_experts, plain.scores.device
        if len(self.off) >= n_experts:
            raise InputError(
                f"all {n_experts} experts are off", "no row can be routed", "leave one on"
            )
        closed = expert_mask(self.off, n_experts, device)
        usable = finite_rows(plain, rows.real)
        if self.share == 0.0:
            return close(plain, closed, usable, gate), history
        before = known(history, Usage, n_experts)
        if before is None:
            before = Usage.start(n_experts, device)
        else:
            most = n_experts - 1 - len(self.off)
            unasked = min(int(self.share * n_experts), most)
            rank = before.share.masked_fill(closed, torch.inf).argsort(stable=True).argsort()
            closed = closed | (rank < unasked)
        asked = sum_by_expert(plain.indices, plain.used & rows.real.unsqueeze(-1), n_experts)
        return close(plain, closed, usable, gate), before.after(asked, self.decay)
