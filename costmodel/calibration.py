"""Correct a table's scale by a few observations at run time, without fitting it again.

Of each observation counts r = log(observed / predicted), of all together the median, of each class
or method how far its own median lies from that. Both are shrunk towards no correction by how much
is known, as the mean of a normal prior would be (Gelman et al., Bayesian Data Analysis, 5.4):

    shift = n τ² / (n τ² + σ²) · median(r),    variance = σ² τ² / (n τ² + σ²)

with σ the spread of one observation (by the median absolute deviation, so that one in three may be
wrong) and τ how far tables are usually off. A median is less efficient than a mean; σ counts that.

Latency and energy are corrected by a scale each; power follows as their ratio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from costprof.core.errors import InputError

Array = npt.NDArray[np.float64]

_TAU_ALL = 0.15  # how far a whole table is usually off (log)
_TAU_OWN = 0.08  # how far a class is off from the rest of its table
_SIGMA = 0.05  # spread of an observation before there are any ...
_COUNTS_AS = 4.0  # ... which counts as so many observations
_MAD = 1.4826  # of a normal distribution: its standard deviation over its MAD
_MEDIAN = 1.2533  # standard error of a median over that of a mean, √(π/2)
_CLOCK_EXPONENT = 1.0 / 3.0  # power grows about as the cube of the clock
_HOT_C = 83.0  # beyond, GPUs begin to lower their clocks
_A_DEGREE = 0.01
_Z90 = 1.6448536269514722


@dataclass(frozen=True, slots=True)
class Scale:
    """Factors on predictions, as logarithms with their standard deviations.

    Attributes:
        log_factor, std: Of what has no observation of its own.
        own: The same two by label (class or method).
        observations: How many there were.
    """

    log_factor: float = 0.0
    std: float = _TAU_ALL
    own: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    observations: int = 0

    def correct(
        self, quantiles: tuple[Array, Array, Array], labels: Sequence[str]
    ) -> tuple[Array, Array, Array]:
        """Return corrected (p05, p50, p95) [n] of predictions of `labels` [n].

        Intervals are widened by the doubt of the factor, as independent errors add up; without a
        single observation nothing changes.
        """
        if not self.observations:
            return quantiles
        rest = (self.log_factor, self.std)
        found = np.array([self.own.get(label, rest) for label in labels]).reshape(-1, 2)
        low, middle, high = (np.log(np.asarray(each, dtype=np.float64)) for each in quantiles)
        more = _Z90 * found[:, 1]
        centre = middle + found[:, 0]
        return (
            np.exp(centre - np.hypot(middle - low, more)),
            np.exp(centre),
            np.exp(centre + np.hypot(high - middle, more)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        own = {label: list(values) for label, values in sorted(self.own.items())}
        return {
            "log_factor": self.log_factor,
            "std": self.std,
            "own": own,
            "observations": self.observations,
        }

    @classmethod
    def of_dict(cls, values: Mapping[str, Any]) -> Scale:
        """Read what `to_dict` wrote."""
        own = {str(label): (float(a), float(b)) for label, (a, b) in values["own"].items()}
        return cls(
            float(values["log_factor"]), float(values["std"]), own, int(values["observations"])
        )


def fit_scale(
    predicted: npt.ArrayLike,
    observed: npt.ArrayLike,
    labels: Sequence[str] | None = None,
    *,
    power_limit_w: npt.ArrayLike | None = None,
    table_limit_w: float | None = None,
    temperature_c: npt.ArrayLike | None = None,
) -> Scale:
    """Return how far `observed` [n] lie from `predicted` [n], both latencies or both energies.

    Args:
        predicted, observed: Positive numbers in one unit.
        labels: Class or method of each [n]; without them all share one factor.
        power_limit_w: Limit under which each was observed [n]; NaN where it is not known.
        table_limit_w: The limit the table holds for. Observed under another one, a call may be
            slower by up to the cube root of the ratio, or not at all: it counts less.
        temperature_c: Of the device at each [n]; hot ones count less, as clocks may have dropped.

    Raises:
        InputError: the numbers do not belong together or are not positive.

    >>> round(fit_scale([100.0] * 50, [110.0] * 50).log_factor, 3)
    0.095
    """
    first, second = (np.asarray(each, dtype=np.float64).ravel() for each in (predicted, observed))
    names = np.asarray(["" for _ in first] if labels is None else list(labels), dtype=str)
    if not len(first) == len(second) == len(names):
        raise _refused(f"{len(first)} predictions, {len(second)} observations, {len(names)} labels")
    if not (np.isfinite(first) & (first > 0.0) & np.isfinite(second) & (second > 0.0)).all():
        raise _refused("predictions and observations are positive numbers")
    if not len(first):
        return Scale()
    ratio = np.log(second / first)
    extra = _extra_variance(len(first), power_limit_w, table_limit_w, temperature_c)
    spread = _spread(ratio, names)
    everything = _shrunk(ratio, spread + extra, _TAU_ALL)
    own = {}
    for name in np.unique(names) if labels is not None else ():
        at = names == name
        shift, std = _shrunk(ratio[at] - everything[0], spread + extra[at], _TAU_OWN)
        own[str(name)] = (everything[0] + shift, float(np.hypot(std, everything[1])))
    unseen = float(np.hypot(everything[1], _TAU_OWN)) if own else everything[1]
    return Scale(everything[0], unseen, own, len(first))


def _spread(ratio: Array, names: npt.NDArray[np.str_]) -> float:
    """Variance of an observation around the median of its label; few count by the prior."""
    centred = ratio.copy()
    free = len(ratio)
    for name in np.unique(names):
        at = names == name
        centred[at] -= np.median(ratio[at])
        free -= 1
    found = float(_MAD * np.median(np.abs(centred))) ** 2
    return (_COUNTS_AS * _SIGMA**2 + free * found) / (_COUNTS_AS + free)


def _shrunk(ratio: Array, variance: Array, tau: float) -> tuple[float, float]:
    """Return the shrunk weighted median and its standard deviation."""
    weight = 1.0 / variance
    precision = float(weight.sum()) / _MEDIAN**2
    share = precision / (precision + tau**-2.0)
    return share * _median(ratio, weight), (precision + tau**-2.0) ** -0.5


def _median(values: Array, weights: Array) -> float:
    """The weighted median; between two values where half the weight lies on either side."""
    order = np.argsort(values)
    sorted_values = values[order]
    below = np.cumsum(weights[order]) / weights.sum()
    left = int(np.searchsorted(below, 0.5 - 1e-9))
    right = int(np.searchsorted(below, 0.5 + 1e-9))
    return float(0.5 * (sorted_values[left] + sorted_values[min(right, len(values) - 1)]))


def _extra_variance(
    size: int,
    power_limit_w: npt.ArrayLike | None,
    table_limit_w: float | None,
    temperature_c: npt.ArrayLike | None,
) -> Array:
    extra = np.zeros(size)
    if power_limit_w is not None and table_limit_w is not None:
        limits = np.broadcast_to(np.asarray(power_limit_w, dtype=np.float64), size)
        shift = _CLOCK_EXPONENT * np.log(limits / table_limit_w)
        extra += np.nan_to_num(shift) ** 2
    if temperature_c is not None:
        hot = np.broadcast_to(np.asarray(temperature_c, dtype=np.float64), size) - _HOT_C
        extra += (_A_DEGREE * np.maximum(np.nan_to_num(hot), 0.0)) ** 2
    return extra


def _refused(fact: str) -> InputError:
    return InputError(
        f"observations do not fit: {fact}",
        "the table was not corrected",
        "give one positive prediction and one positive observation each, in one unit",
    )
