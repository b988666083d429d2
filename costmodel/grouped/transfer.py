"""Prices on a device hardly or never measured: a source's, carried over, and corrected.

    latency = carried(layer) · exp(correction(layer))

`grouped.carry` moves the source's prices by what the datasheets say. What that misses,
log(measured / carried), is a Gaussian process over the layer's traits: a part that all methods
(kernel, version, precision) share and a part of each, both with a level and a smooth function.
Without any measurement of the target it says how doubtful carrying is: the more, the further apart
the devices are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve, solve_triangular

from costprof.costmodel.devices import DeviceSpec
from costprof.costmodel.grouped.carry import TRAITS, Carried, Source, carry, distance
from costprof.costmodel.grouped.intervals import Z90
from costprof.costmodel.grouped.model import LayerPrediction
from costprof.costmodel.grouped.points import LayerPoints, Strings

Array = npt.NDArray[np.float64]

_LENGTH = 3.0  # over traits, which are scaled for it
_DRAW_FACTOR = 0.2  # of the spread between drawn routings: two devices, each over its own draws
_POWER_STD = 0.1  # of carrying power: no two measured GPUs with meters were at hand
_ROWS_AT_ONCE = 256  # the covariance of so many needs a few MB


@dataclass(frozen=True, slots=True)
class TransferScales:
    """Standard deviations of the log correction, and the lengths over which it changes.

    Attributes:
        common_std, method_std: Of the level of all layers and of each method.
        smooth_std, method_smooth_std: Of the functions of the traits.
        noise_std: Of one measurement against one carried price.
        draw_factor: How much of the spread between drawn routings is noise, too.
        lengths, method_lengths: Over the traits: [len(TRAITS)].
    """

    common_std: Any
    method_std: Any
    smooth_std: Any
    method_smooth_std: Any
    noise_std: Any
    draw_factor: Any
    lengths: Any
    method_lengths: Any

    @classmethod
    def of_distance(cls, apart: float) -> TransferScales:
        """Return what is expected of devices `apart` (`carry.distance`).

        Shares of the distance, set on one pair of GPUs (H100 and H200, 0.36 apart), on which
        carrying errs by 5 %: for want of another pair they stand for all.
        """
        lengths = np.full(len(TRAITS), _LENGTH)
        return cls(
            common_std=0.055 * apart,
            method_std=0.085 * apart,
            smooth_std=0.1 * apart,
            method_smooth_std=0.125 * apart,
            noise_std=0.03,
            draw_factor=_DRAW_FACTOR,
            lengths=lengths,
            method_lengths=lengths,
        )

    def prior_variance(self, strangeness: Any = 1.0) -> Any:
        """Variance of the correction before any measurement, noise apart."""
        own = self.method_std**2 + self.method_smooth_std**2
        return self.common_std**2 + self.smooth_std**2 + strangeness**2 * own

    def noise_variance(self, spread: Any) -> Any:
        """Variance [n] of a measurement whose routings spread the work by `spread` [n]."""
        return self.noise_std**2 + (self.draw_factor * spread) ** 2

    def to_logs(self) -> Array:
        """Return the logarithms of all scales: [6 + 2 · len(TRAITS)]."""
        flat = [np.atleast_1d(getattr(self, field.name)) for field in dataclasses.fields(self)]
        return np.asarray(np.log(np.concatenate(flat)), dtype=np.float64)

    @classmethod
    def of_values(cls, values: Any) -> TransferScales:
        """Return the scales whose `to_logs` are the logarithms of `values` (array or tensor)."""
        names = [field.name for field in dataclasses.fields(cls)]
        numbers: dict[str, Any] = {name: values[at] for at, name in enumerate(names[:-2])}
        first = len(numbers)
        numbers["lengths"] = values[first : first + len(TRAITS)]
        numbers["method_lengths"] = values[first + len(TRAITS) :]
        return cls(**numbers)


def covariance(
    squares: Any, shared: Any, s: TransferScales, exp: Callable[[Any], Any] = np.exp
) -> Any:
    """Return the covariance [n, m] of log corrections, measurement noise apart.

    `squares` [n, m, len(TRAITS)] are the squared differences of the traits; `shared` [n, m] is the
    product of both strangenesses where the method is the same, else 0. Written in arithmetic that
    arrays and tensors share; `exp` is theirs.
    """

    def matern(lengths: Any) -> Any:
        scaled = (3.0 * (squares @ lengths**-2.0) + 1e-12) ** 0.5
        return (1.0 + scaled) * exp(-scaled)

    common = s.common_std**2 + s.smooth_std**2 * matern(s.lengths)
    own = s.method_std**2 + s.method_smooth_std**2 * matern(s.method_lengths)
    return common + shared * own


@dataclass(frozen=True)
class Correction:
    """The process, given what was measured on the target.

    Attributes:
        scales: Its scales.
        method, strangeness, traits: Of the layers measured: [n], [n], [n, len(TRAITS)].
        residual: Their log(measured / carried), extreme ones cut: [n].
        noise: Variance of each: [n].
        factor: Half width of a 90 % interval in standard deviations.
        power_shift: Added to the log of carried power.
    """

    scales: TransferScales
    method: Strings
    strangeness: Array
    traits: Array
    residual: Array
    noise: Array
    factor: float = Z90
    power_shift: float = 0.0

    def predict(self, carried: Carried) -> tuple[Array, Array]:
        """Return mean and variance [m] of log(measured / carried), noise included."""
        size = len(carried)
        mean = np.zeros(size)
        variance = np.array(self.scales.prior_variance(carried.strangeness), dtype=np.float64)
        if len(self.residual):
            factor = np.linalg.cholesky(self.total())
            weights = cho_solve((factor, True), self.residual)
            cross = between(carried, self, self.scales)
            mean = cross @ weights
            half = solve_triangular(factor, cross.T, lower=True)
            variance -= (half**2).sum(axis=0)
        noise = self.scales.noise_variance(carried.spread) + carried.variance
        return mean, np.maximum(variance, 0.0) + noise

    def total(self) -> Array:
        """Return the covariance [n, n] of what was measured, noise included."""
        own = between(self, self, self.scales)
        own[np.diag_indices_from(own)] += self.noise
        return own

    def left_out(self) -> tuple[Array, Array]:
        """Return mean and variance [n] at each measured layer had it not been measured."""
        factor = cho_factor(self.total(), lower=True)
        inverse = cho_solve(factor, np.eye(len(self.residual)))
        variance = 1.0 / np.diag(inverse)
        return self.residual - variance * (inverse @ self.residual), variance


@dataclass(frozen=True)
class TransferModel:
    """A target's prices from a source's: `source` and `correction` as attributes say."""

    source: Source
    target: DeviceSpec
    correction: Correction

    def predict(self, points: LayerPoints) -> LayerPrediction:
        """Price `points` on the target; energies are NaN where the source knows no power."""
        return corrected(carry(self.source, points, self.target), self.target, self.correction)


def fresh(source: DeviceSpec, target: DeviceSpec) -> Correction:
    """Return the correction of a target nobody measured."""
    empty = np.empty(0)
    scales = TransferScales.of_distance(distance(source, target))
    return Correction(
        scales, np.empty(0, dtype=str), empty, np.empty((0, len(TRAITS))), empty, empty
    )


def corrected(carried: Carried, target: DeviceSpec, correction: Correction) -> LayerPrediction:
    """Return the prices of `carried` layers after the `correction`."""
    mean, variance = correction.predict(carried)
    log_us = carried.log_us + mean
    log_w = np.minimum(carried.log_w + correction.power_shift, np.log(target.power_limit_w))
    energy_std = np.sqrt(variance + carried.power_variance + _POWER_STD**2)
    return LayerPrediction(
        latency_us=_around(log_us, correction.factor * np.sqrt(variance)),
        energy_mj=_around(log_us + log_w + np.log(1e-3), correction.factor * energy_std),
        power_w=np.exp(log_w),
        known_group=carried.known_group,
    )


def between(a: Carried | Correction, b: Carried | Correction, scales: TransferScales) -> Array:
    """Return the covariance [n, m] between the n layers of `a` and the m of `b`."""
    codes = np.unique(np.concatenate([a.method, b.method]), return_inverse=True)[1]
    first, second = codes[: len(a.method)], codes[len(a.method) :]
    total = np.empty((len(first), len(second)))
    for start in range(0, len(first), _ROWS_AT_ONCE):
        at = slice(start, start + _ROWS_AT_ONCE)
        squares = (a.traits[at, None, :] - b.traits) ** 2
        same = (first[at, None] == second).astype(np.float64)
        shared = same * a.strangeness[at, None] * b.strangeness
        total[at] = covariance(squares, shared, scales)
    return total


def _around(log_median: Array, half_width: Array) -> tuple[Array, Array, Array]:
    return (
        np.exp(log_median - half_width),
        np.exp(log_median),
        np.exp(log_median + half_width),
    )
