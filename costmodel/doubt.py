"""How sure Gaussian processes are, and which measurements would make them surest.

The posterior variance depends on where was measured, not on what was read (Krause, Singh and
Guestrin, JMLR 9, 2008), so a whole batch can be chosen before any of it is measured. Each step
takes the candidate that lowers the summed expected error most, E|error| = sqrt(2 / pi) · std for a
normal error; it is found lazily (Minoux, 1978): a gain is only worked out again when the last one
known says that it could be the best.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

_BLOCK = 128  # candidates whose gains are worked out at once
_PER_STD = (2.0 / np.pi) ** 0.5


class Doubt:
    """The doubt of one process about its n candidates, as more and more are measured.

    The posterior covariance is the prior less L Lᵀ, a column of L a measurement.
    """

    def __init__(
        self,
        prior: Callable[[Index], Array],
        variance: Array,
        noise: Array,
        *,
        weight: float = 1.0,
        worth: Array | float = 1.0,
    ) -> None:
        """Begin with nothing measured.

        Args:
            prior: Positions [m] to the prior covariance of all candidates with those: [n, m].
            variance: Of each candidate before anything is measured: [n].
            noise: Variance of a measurement of each: [n].
            weight: Factor on the standard deviations of all.
            worth: Factor [n] on the gain of measuring each, say 1 / its cost.
        """
        self.measured = np.zeros(len(variance), dtype=bool)
        self.count = 0
        self._prior, self._noise, self._weight = prior, noise, weight
        self._variance = np.array(variance, dtype=np.float64)
        self._worth = np.broadcast_to(np.asarray(worth, dtype=np.float64), len(variance))
        self._factor = np.empty((len(variance), 16))

    def expected_errors(self) -> Array:
        """Return E|measured - predicted| of every candidate [n], noise included."""
        return np.asarray(self._weight * _PER_STD * np.sqrt(self._variance + self._noise))

    def gains(self, positions: Index) -> Array:
        """Return by how much measuring each of `positions` [m] lowers the summed error: [m]."""
        parts = [
            self._gains(positions[start : start + _BLOCK])
            for start in range(0, len(positions), _BLOCK)
        ]
        return np.concatenate(parts) if parts else np.empty(0)

    def measure(self, position: int) -> None:
        """Take the candidate at `position` as measured."""
        at = np.array([position])
        column = self._columns(at)[:, 0] / np.sqrt(self._variance[at] + self._noise[at])
        if self.count == self._factor.shape[1]:
            self._factor = np.concatenate([self._factor, np.empty_like(self._factor)], axis=1)
        self._factor[:, self.count] = column
        self.count += 1
        self._variance = np.maximum(self._variance - column**2, 0.0)
        self.measured[position] = True

    def rule_out(self, position: int) -> None:
        """Never choose the candidate at `position`: it was tried and cannot be measured."""
        self.measured[position] = True

    def _gains(self, positions: Index) -> Array:
        explained = self._columns(positions) ** 2
        explained /= self._variance[positions] + self._noise[positions]
        total = (self._variance + self._noise)[:, None]
        left = np.sqrt(np.maximum(total - explained, self._noise[:, None]))
        lower = (np.sqrt(total) - left).sum(axis=0)
        return np.asarray(_PER_STD * self._weight * self._worth[positions] * lower)

    def _columns(self, positions: Index) -> Array:
        """Return the posterior covariance of all candidates with those at `positions`: [n, m]."""
        known = self._factor[:, : self.count]
        return np.asarray(self._prior(positions) - known @ known[positions].T)


def most_telling(doubts: Sequence[Doubt], number: int) -> list[tuple[int, int]]:
    """Measure `number` more candidates (fewer where no more are left), the most telling first.

    Returns which process and which of its candidates, in the order of choosing; equal gains go to
    the earlier.
    """
    chosen: list[tuple[int, int]] = []
    heap: list[tuple[float, int, int, int]] = []  # -gain, process, position, count it was known at
    for index, doubt in enumerate(doubts):
        left = np.flatnonzero(~doubt.measured)
        gains = doubt.gains(left)
        heap += [
            (-gain, index, position, doubt.count)
            for gain, position in zip(gains.tolist(), left.tolist(), strict=True)
        ]
    heapq.heapify(heap)
    while heap and len(chosen) < number:
        _, index, position, count = heapq.heappop(heap)
        doubt = doubts[index]
        if count == doubt.count:
            doubt.measure(position)
            chosen.append((index, position))
        else:
            gain = float(doubt.gains(np.array([position]))[0])
            heapq.heappush(heap, (-gain, index, position, doubt.count))
    return chosen
