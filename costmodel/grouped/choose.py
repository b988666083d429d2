"""Choose which layers to measure: those after which the prices of all are least in doubt.

First come the layers no field should be without: of each group the smallest and the largest batch
and one batch under each choice of tiles. Then, one after the other, whichever lowers the summed
expected error of all candidates most (`costprof.costmodel.doubt`), and among them some by lot:
measurements that follow a pattern do not tell what is noise and what changes between neighbours,
and the trees learn best from layers of all kinds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from costprof.costmodel.doubt import Doubt, most_telling
from costprof.costmodel.grouped.field import Apart, FieldScales, Sites, covariance
from costprof.costmodel.grouped.model import GroupedModel, GroupFields, Measured
from costprof.costmodel.grouped.points import LayerPoints

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

_BY_LOT = 0.2  # share of the measurements that are drawn
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
    known = np.zeros(len(points), dtype=bool)
    known[measured] = True
    number = min(number, int((~known).sum()))
    sites = Sites.of_points(points)
    fields = []
    for name in np.unique(points.group):
        at = np.flatnonzero(points.group == name)
        lots = 1.0 - _ALIKE * rng.random(len(at))
        weight = (weights or {}).get(str(name), 1.0)
        fields.append(_Candidates.of(at, sites.take(at), scales, weight, lots / costs[at]))
    for field in fields:
        field.measure(np.flatnonzero(known[field.at]))
    chosen = _essential(fields, number)
    known[chosen] = True
    drawn = rng.permutation(np.flatnonzero(~known))[: round(_BY_LOT * (number - len(chosen)))]
    for field in fields:
        field.measure(np.flatnonzero(np.isin(field.at, drawn)))
    found = most_telling([field.doubt for field in fields], number - len(chosen) - len(drawn))
    chosen += [*drawn.tolist(), *(int(fields[which].at[position]) for which, position in found)]
    total = sum(float(field.doubt.expected_errors().sum()) for field in fields)
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
        own = measured.take(at)
        field = GroupFields.of(model, own)
        mean, variance = field.learned.left_out(np.arange(len(at)))
        residual = np.log(own.latency_us) - np.log(model.base(own.points, field.fold).latency_us)
        score = np.abs(residual - mean) / np.sqrt(variance)
        ratio = (float(score.sum()) * (np.pi / 2) ** 0.5 + _LEAST_JUDGED) / (
            len(at) + _LEAST_JUDGED
        )
        found[str(name)] = float(np.clip(ratio, *_WEIGHTS))
    return found


@dataclass(frozen=True)
class _Candidates:
    """The layers of one group: `at` [n] their positions among all."""

    at: Index
    sites: Sites
    doubt: Doubt

    @classmethod
    def of(
        cls, at: Index, sites: Sites, scales: FieldScales, weight: float, worth: Array
    ) -> _Candidates:
        """Return the layers at `at`, none of them measured."""

        def prior(positions: Index) -> Array:
            apart = Apart.between(sites, sites.take(positions))
            return np.asarray(covariance(apart, scales), dtype=np.float64)

        variance = np.full(len(at), scales.prior_variance())
        noise = np.broadcast_to(scales.noise_variance(sites.spread), len(at))
        return cls(at, sites, Doubt(prior, variance, noise, weight=weight, worth=worth))

    def measure(self, positions: Index) -> None:
        """Take the layers at `positions` as measured."""
        for position in positions.tolist():
            self.doubt.measure(position)

    def needs(self) -> list[npt.NDArray[np.bool_]]:
        """Return sets of layers [n] of which one each should be measured, the ends first."""
        octaves, regime = self.sites.octaves, self.sites.regime
        ends = [octaves == octaves.max(), octaves == octaves.min()]
        return [*ends, *(regime == each for each in np.unique(regime))]


def _essential(fields: list[_Candidates], number: int) -> list[int]:
    """Measure what each group needs, a need of every group in turn, `number` at most."""
    chosen: list[int] = []
    needs = [field.needs() for field in fields]
    for turn in range(max((len(each) for each in needs), default=0)):
        for field, wanted in zip(fields, needs, strict=True):
            if turn >= len(wanted) or len(chosen) >= number:
                continue
            inside = np.flatnonzero(wanted[turn])
            if field.doubt.measured[inside].any():
                continue
            best = int(inside[field.doubt.gains(inside).argmax()])
            field.doubt.measure(best)
            chosen.append(int(field.at[best]))
    return chosen
