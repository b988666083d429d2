"""Intervals that hold: the process's doubt, scaled until left-out measurements fall inside.

Split-conformal prediction on scores normalised by the predicted standard deviation (Lei et al.,
JASA 113, 2018), a quantile for each bin of what is alike in doubt (Mondrian; Vovk et al., 2005):
how much of the prior variance is left, and whether the batch is small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Bins = npt.NDArray[np.int64]

COVERAGE = 0.9
Z90 = 1.6448536269514722
"""Half width of a normal 90 % interval, in standard deviations."""
_NOVELTY = (0.1, 0.3, 0.6)  # share of the prior variance left; of a new group, the last bin
_FEW_TOKENS = 64.0
_LEAST = 30
N_BINS = 2 * (len(_NOVELTY) + 2)


def doubt_bins(novelty: Array, known_group: npt.NDArray[np.bool_], tokens: Array) -> Bins:
    """Return the bin [n] of each prediction; `novelty` [n] is its share of the prior variance."""
    level = np.where(known_group, np.searchsorted(_NOVELTY, novelty), len(_NOVELTY) + 1)
    return np.asarray(2 * level + (tokens > _FEW_TOKENS), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Half width of the interval in standard deviations, by bin: [N_BINS]."""

    factor: Array

    @classmethod
    def of_scores(cls, scores: Array, bins: Bins) -> Calibration:
        """Return the quantiles of `scores` [n] = |log error| / std; thin bins borrow from all."""
        overall = _quantile(scores) if len(scores) else Z90
        factor = np.full(N_BINS, overall)
        for at in range(N_BINS):
            inside = scores[bins == at]
            if len(inside) >= _LEAST:
                factor[at] = _quantile(inside)
        return cls(factor)

    def half_width(self, std: Array, bins: Bins) -> Array:
        """Return the half width [n] in log of the 90 % interval."""
        return np.asarray(std * self.factor[bins])

    def to_list(self) -> list[float]:
        """Return the factors as plain numbers."""
        return [float(value) for value in self.factor]

    @classmethod
    def of_list(cls, values: Any) -> Calibration:
        """Read what `to_list` wrote."""
        return cls(np.array(values, dtype=np.float64))


def _quantile(scores: Array) -> float:
    """The conformal quantile: with a finite sample's correction, never beyond the largest."""
    level = min(1.0, np.ceil((len(scores) + 1) * COVERAGE) / len(scores))
    return float(np.quantile(scores, level, method="higher"))
