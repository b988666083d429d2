"""Choose which layers to measure: those after which the prices of all are least in doubt.

The posterior variance of a Gaussian process depends on where was measured, not on what was read
(Krause, Singh and Guestrin, JMLR 9, 2008), so a whole batch can be chosen before any of it is
measured. Each step takes the layer that lowers the summed expected error of all candidates most,
E|log error| = sqrt(2 / pi) · std for a normal error; it is found lazily (Minoux, 1978): a layer's
gain is only worked out again when the last one known says that it could be the best.

First come the layers no field should be without: of each group the smallest and the largest batch
and one batch under each choice of tiles.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from costprof.costmodel.grouped.field import Apart, FieldScales, Sites, covariance
from costprof.costmodel.grouped.model import GroupedModel, GroupFields, Measured
from costprof.costmodel.grouped.points import LayerPoints

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

_BLOCK = 128  # candidates whose gains are worked out at once
_ALIKE = 0.02  # gains so close are decided by lot
_LEAST_JUDGED = 8  # measurements of a group from which its own errors say how far to trust it
_WEIGHTS = (0.5, 3.0)  # a group's errors are at most so many times what the scales say


@dataclass(frozen=True)
class LayerChoice:
    """Positions of the chosen layers, in the order of choosing, and how sure all would be then.

    `expected_error` is the mean over all candidates of E|log(measured / predicted)|.
    """

    chosen: Index
    expected_error: float


def choose_layers(
    points: LayerPoints,
    measured: Index,
    number: int,
    scales: FieldScales,
    *,
    weights: Mapping[str, float] | None = None,
    cost: Array | None = None,
    seed: int = 0,
) -> LayerChoice:
    """Return `number` of the `points` [n] to measure next (fewer where no more are left).

    Args:
        points: All layers whose prices matter; any of them can be measured.
        measured: Positions of those measured so far.
        number: How many to choose.
        scales: Of the field over the groups.
        weights: How many times larger than `scales` say a group's errors are, by group.
        cost: What measuring each costs [n], in any unit; without it all cost the same.
        seed: Of the lots that decide between layers of like gain.
    """
    costs = np.ones(len(points)) if cost is None else np.asarray(cost, dtype=np.float64)
    rng = np.random.default_rng(seed)
    sites, known = Sites.of_points(points), np.zeros(len(points), dtype=bool)
    known[measured] = True
    names = np.unique(points.group)
    groups = []
    for name in names:
        at = np.flatnonzero(points.group == name)
        weight = (weights or {}).get(str(name), 1.0)
        lots = 1.0 - _ALIKE * rng.random(len(at))
        group = _Group(at, sites.take(at), scales, weight, lots / costs[at])
        for position in np.flatnonzero(known[at]):
            group.measure(int(position))
        groups.append(group)
    chosen = _essential(groups, number)
    chosen += _most_telling(groups, number - len(chosen))
    total = sum(float(group.expected_errors().sum()) for group in groups)
    return LayerChoice(np.array(chosen, dtype=np.int64), total / max(len(points), 1))


def group_weights(model: GroupedModel, measured: Measured) -> dict[str, float]:
    """Return how far the errors of each group exceed what the model's scales say: name → factor.

    By leaving out each measurement in turn; what few of them say counts little.
    """
    found = {}
    groups = measured.points.group
    for name in np.unique(groups):
        at = np.flatnonzero(groups == name)
        if len(at) < _LEAST_JUDGED:
            continue
        own = Measured(measured.points.take(at), measured.latency_us[at], measured.power_w[at])
        field = GroupFields.of(model, own)
        mean, variance = field.learned.left_out(np.arange(len(at)))
        residual = np.log(own.latency_us) - np.log(model.base(own.points, field.fold).latency_us)
        score = np.abs(residual - mean) / np.sqrt(variance)
        ratio = (float(score.sum()) * (np.pi / 2) ** 0.5 + _LEAST_JUDGED) / (
            len(at) + _LEAST_JUDGED
        )
        found[str(name)] = float(np.clip(ratio, *_WEIGHTS))
    return found


def _essential(groups: list[_Group], number: int) -> list[int]:
    """Measure what each group needs, a need of every group in turn, `number` at most."""
    chosen: list[int] = []
    needs = [group.needs() for group in groups]
    for turn in range(max((len(each) for each in needs), default=0)):
        for group, wanted in zip(groups, needs, strict=True):
            if turn >= len(wanted) or len(chosen) >= number:
                continue
            inside = np.flatnonzero(wanted[turn])
            if group.measured[inside].any():
                continue
            best = int(inside[group.gains(inside).argmax()])
            group.measure(best)
            chosen.append(int(group.at[best]))
    return chosen


def _most_telling(groups: list[_Group], number: int) -> list[int]:
    """Measure `number` more, each time the one that tells most about all."""
    chosen: list[int] = []
    heap: list[tuple[float, int, int, int]] = []  # -gain, group, position, measurements it knew of
    for index, group in enumerate(groups):
        left = np.flatnonzero(~group.measured)
        gains = group.gains(left)
        heap += [
            (-gain, index, position, group.count)
            for gain, position in zip(gains.tolist(), left.tolist(), strict=True)
        ]
    heapq.heapify(heap)
    while heap and len(chosen) < number:
        _, index, position, count = heapq.heappop(heap)
        group = groups[index]
        if count == group.count:
            group.measure(position)
            chosen.append(int(group.at[position]))
        else:
            gain = float(group.gains(np.array([position]))[0])
            heapq.heappush(heap, (-gain, index, position, group.count))
    return chosen


class _Group:
    """The doubt about the layers of one group; all arrays [n].

    The posterior covariance is the prior less L Lᵀ, a column of L a measurement.
    """

    def __init__(
        self, at: Index, sites: Sites, scales: FieldScales, weight: float, worth: Array
    ) -> None:
        """Begin with nothing measured; `worth` multiplies the gain of measuring a layer."""
        self.at = at
        self.measured = np.zeros(len(at), dtype=bool)
        self._sites, self._scales, self._weight, self._worth = sites, scales, weight, worth
        self._noise = np.broadcast_to(scales.noise_variance(sites.spread), len(at))
        self._variance = np.full(len(at), scales.prior_variance())
        self._factor = np.empty((len(at), 16))
        self.count = 0

    def needs(self) -> list[npt.NDArray[np.bool_]]:
        """Return sets of layers of which one each should be measured, the widest apart first."""
        octaves, regime = self._sites.octaves, self._sites.regime
        ends = [octaves == octaves.max(), octaves == octaves.min()]
        return [*ends, *(regime == each for each in np.unique(regime))]

    def expected_errors(self) -> Array:
        """Return E|log(measured / predicted)| of every layer."""
        return np.asarray(self._weight * np.sqrt(2 / np.pi * (self._variance + self._noise)))

    def gains(self, positions: Index) -> Array:
        """Return by how much measuring each of `positions` [m] lowers the summed error: [m]."""
        parts = [
            self._gains(positions[start : start + _BLOCK])
            for start in range(0, len(positions), _BLOCK)
        ]
        return np.concatenate(parts) if parts else np.empty(0)

    def measure(self, position: int) -> None:
        """Take the layer at `position` as measured."""
        at = np.array([position])
        column = self._columns(at)[:, 0] / np.sqrt(self._variance[at] + self._noise[at])
        if self.count == self._factor.shape[1]:
            self._factor = np.concatenate([self._factor, np.empty_like(self._factor)], axis=1)
        self._factor[:, self.count] = column
        self.count += 1
        self._variance = np.maximum(self._variance - column**2, 0.0)
        self.measured[position] = True

    def _gains(self, positions: Index) -> Array:
        explained = self._columns(positions) ** 2
        explained /= self._variance[positions] + self._noise[positions]
        total = (self._variance + self._noise)[:, None]
        left = np.sqrt(np.maximum(total - explained, self._noise[:, None]))
        lower = (np.sqrt(total) - left).sum(axis=0)
        return np.asarray(self._weight * self._worth[positions] * lower)

    def _columns(self, positions: Index) -> Array:
        """Return the posterior covariance of all layers with those at `positions`: [n, m]."""
        apart = Apart.between(self._sites, self._sites.take(positions))
        known = self._factor[:, : self.count]
        return np.asarray(covariance(apart, self._scales) - known @ known[positions].T)
