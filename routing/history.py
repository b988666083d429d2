"""What policies remember from batch to batch: how much experts are used, and what is resident.

Both change by the routing of whole batches already past, so a row that is routed by them sees no
later token of its own sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from costprof.core.errors import InputError

History = TypeVar("History", "Usage", "Balance", "Resident")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Usage:
    """Running share of each expert in all assignments, [E] float64, sum 1."""

    share: Tensor

    @classmethod
    def start(cls, n_experts: int, device: torch.device) -> Usage:
        """Return equal use of all experts."""
        return cls(share=torch.full((n_experts,), 1.0 / n_experts, device=device).double())

    def after(self, counts: Tensor, decay: float) -> Usage:
        """Return the use after a batch of `counts` [E]; an empty one changes nothing."""
        total = counts.sum()
        seen = counts.double() / total.clamp_min(1)
        moved = decay * self.share + (1.0 - decay) * seen
        return Usage(share=torch.where(total > 0, moved, self.share))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Balance:
    """Use of the experts, and the bias [E] float32 that evens it out."""

    usage: Usage
    bias: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Resident:
    """Experts in fast memory, and how far logits range.

    Attributes:
        experts: [E] bool.
        range_sum: int64 scalar, sum over rows of their logit range, in units of 2**-20.
        rows: int64 scalar, how many rows that is.
    """

    experts: Tensor
    range_sum: Tensor
    rows: Tensor


def known(history: Any, kind: type[History], n_experts: int) -> History | None:
    """Return `history` if it is of `kind`, None for None.

    Raises:
        InputError: it is another policy's, or of a layer with other experts.
    """
    if history is None:
        return None
    if not isinstance(history, kind):
        raise InputError(
            f"the history is {type(history).__name__}, not {kind.__name__}",
            "the batch was not routed",
            "start without a history when the policy changes",
        )
    inner = history.usage if isinstance(history, Balance) else history
    size = (inner.share if isinstance(inner, Usage) else inner.experts).numel()
    if size != n_experts:
        raise InputError(
            f"the history is of {size} experts, the layer has {n_experts}",
            "the batch was not routed",
            "keep one history per layer",
        )
    return history
