"""Dense price lookup: what a router pays per decision, so one gather and no host sync.

All tensors are float64; prices are exact sums of table values on any device.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from costprof.costmodel.curves import ClassCurves
from costprof.costmodel.manifest import Composition

COLUMNS = ("latency_us", "energy_mj")
"""What the two columns of a price are."""


@dataclass(frozen=True, slots=True)
class DenseLookup:
    """Prices of `E` experts in `C` classes at 0 … `max_tokens`; beyond, linear.

    Attributes:
        values: [(max_tokens + 1) · C, 2], `COLUMNS`, layer scales applied; row
            `n · C + c` is class `c` at `n` tokens.
        class_index: [E] int64, class of each expert.
        slope: [E, 2] price of each token beyond `max_tokens`.
        base: [2] price of the layer itself.
    """

    values: Tensor
    class_index: Tensor
    slope: Tensor
    base: Tensor
    n_classes: int
    max_tokens: int

    def to(self, device: torch.device) -> DenseLookup:
        """Return the lookup with all tensors on `device`."""
        tensors = {name: getattr(self, name).to(device) for name in _TENSORS}
        return dataclasses.replace(self, **tensors)

    def priced(self) -> frozenset[str]:
        """Return which parts of a price are finite and above 0 for every class and count."""
        busy = self.values[self.n_classes :]
        good = (busy.isfinite() & (busy > 0.0)).all(dim=0).tolist()
        return frozenset(name for name, each in zip(COLUMNS, good, strict=True) if each)

    def experts(self, counts: Tensor) -> Tensor:
        """Return prices [..., E, 2] of integer `counts` [..., E]; negative ones price as 0."""
        if counts.dtype is not torch.int64:
            counts = counts.to(torch.int64)  # narrower types could not hold max_tokens
        if self._all_within(counts):
            return torch.embedding(self.values, self._rows(counts))
        within = counts.clamp(0, self.max_tokens)
        prices = torch.embedding(self.values, self._rows(within))
        return prices + (counts - within).clamp_min(0).unsqueeze(-1) * self.slope

    def layer(self, counts: Tensor) -> Tensor:
        """Return prices [..., 2] of a layer with integer `counts` [..., E]."""
        return self.experts(counts).sum(-2) + self.base

    def _rows(self, counts: Tensor) -> Tensor:
        """Return the rows of `values` of `counts` in 0 … `max_tokens`; both [..., E] int64."""
        return torch.add(self.class_index, counts, alpha=self.n_classes)

    def _all_within(self, counts: Tensor) -> bool:
        """Return True where all counts are in 0 … `max_tokens`; False where not so or unknown.

        Looking spares a third of the time on a CPU; on a GPU it would wait for the device.
        """
        if torch.compiler.is_compiling() or not counts.is_cpu or counts.numel() == 0:
            return False
        low, high = torch.aminmax(counts)
        return low.item() >= 0 and high.item() <= self.max_tokens

    def expected_layer(self, expected: Tensor) -> Tensor:
        """Return prices [..., 2] of a layer with real-valued `expected` counts [..., E].

        Piecewise linear between whole counts, so the gradient at `n` ≤ x < `n + 1` is the price
        of token `n + 1`, and below 1 that of waking the expert. Negative counts price as 0.
        """
        amount = expected.to(torch.float64).clamp_min(0.0)
        floor = amount.detach().floor().clamp_max(self.max_tokens - 1)
        row = self._rows(floor.to(torch.int64))
        low = torch.embedding(self.values, row)
        rise = torch.embedding(self.values, row + self.n_classes) - low
        return (low + (amount - floor).unsqueeze(-1) * rise).sum(-2) + self.base


_TENSORS = ("values", "class_index", "slope", "base")


def build_lookup(
    classes: dict[str, ClassCurves],
    class_of_expert: tuple[str, ...],
    compositions: dict[str, Composition],
) -> DenseLookup:
    """Lay the classes' curves out densely, layer composition applied.

    A layer of several classes pays the largest base among them once.
    """
    names = list(dict.fromkeys(class_of_expert))
    max_tokens = max(classes[name].max_tokens for name in names)
    composed = [compositions.get(name, Composition()) for name in names]
    scale = np.array([[each.latency_scale, each.energy_scale] for each in composed])
    base = np.array([[each.base_us, each.base_mj] for each in composed]).max(axis=0)
    # One column more than the largest count: its slope is the price of a token beyond.
    dense = np.stack([classes[name].dense(max_tokens + 1) for name in names])  # [C, max + 2, 2]
    dense = dense * scale[:, None, :]
    slope = np.maximum(dense[:, -1] - dense[:, -2], 0.0)
    position = [names.index(name) for name in class_of_expert]
    by_count = dense.transpose(1, 0, 2).reshape(-1, 2)
    return DenseLookup(
        values=torch.from_numpy(by_count.copy()),
        class_index=torch.tensor(position, dtype=torch.int64),
        slope=torch.from_numpy(slope[position]),
        base=torch.from_numpy(base),
        n_classes=len(names),
        max_tokens=max_tokens + 1,
    )
