"""Hold back experts that were used more than their share, as training does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from costprof.costmodel.table import CostTable
from costprof.routing.contract import Gate, Rows, Selection, SystemState
from costprof.routing.history import Balance, Usage, known
from costprof.routing.parameters import set_number, set_whole
from costprof.routing.pruning import sum_by_expert
from costprof.routing.reselection import finite_rows, first_slots, rerank


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticalBalance:
    """A bias on the choice falls for experts used above average so far, and rises for the others.

    After each batch `bias += rate · sign(1 / E - use)`, where `use` is the running share of an
    expert in all assignments: the balancing without auxiliary loss of DeepSeek-V3 (arXiv
    2408.15664), carried on at run time. Where we differ: use is a moving average instead of the
    last batch's; the bias is bounded; a row's first `keep` experts and the gate's groups are not
    touched. It evens out load and heat, and wakes more experts, not fewer.

    A row's experts depend on batches before, not on companions, so rows of prompts are changed
    too. Promised: every row keeps its first `keep` experts.

    Args:
        rate: Step of the bias, in scores, at least 0; 0 changes nothing.
        decay: Of the running use, in [0, 1].
        max_bias: Bound of the bias, in scores, at least 0.
        keep: At least 1.

    Raises:
        InputError: a parameter outside its range.
    """

    rate: float = 0.0
    decay: float = 0.9
    max_bias: float = 0.1
    keep: int = 1

    def __post_init__(self) -> None:
        set_number(self, "rate")
        set_number(self, "decay", 0.0, 1.0)
        set_number(self, "max_bias")
        set_whole(self, "keep", 1)

    @property
    def neutral(self) -> bool:
        """True where no bias can arise."""
        return self.rate == 0.0 or self.max_bias == 0.0

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
        """Return the selection by the biased ranking, and use and bias after it.

        Raises:
            InputError: the history is another policy's or another layer's.
        """
        n_experts, device = table.n_experts, plain.scores.device
        before = known(history, Balance, n_experts)
        if before is None:
            bias = torch.zeros(n_experts, device=device)
            before, chosen = Balance(usage=Usage.start(n_experts, device), bias=bias), plain
        else:
            kept = torch.zeros_like(plain.ranking, dtype=torch.bool)
            kept.scatter_(-1, plain.indices, first_slots(plain, self.keep))
            ranking = (plain.ranking + before.bias).masked_fill(kept, torch.inf)
            chosen = rerank(plain, ranking, finite_rows(plain, rows.real))
        used = chosen.used & rows.real.unsqueeze(-1)
        counts = sum_by_expert(chosen.indices, used, n_experts)
        usage = before.usage.after(counts, self.decay)
        step = self.rate * torch.sign(1.0 / n_experts - usage.share).float()
        # An empty batch teaches nothing.
        moved = (before.bias + step * (counts.sum() > 0)).clamp(-self.max_bias, self.max_bias)
        return chosen, Balance(usage=usage, bias=moved)
