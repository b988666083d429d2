"""What a sweep's curves have in common: how smooth they are, and how sure a few points make one.

    log(latency / roofline) = level of the curve + f(x) + luck + noise

`f` has a Matérn-3/2 covariance (Rasmussen and Williams, 2006, eq. 4.17). Amplitude, lengths and
luck are the same for all curves of a device: three points do not tell how smooth one curve is, a
sweep's curves together do. They are the most probable ones under log-normal priors, found by
L-BFGS from one start, so the same measurements give the same process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky
from scipy.optimize import minimize

from costprof.costmodel.features import Array

_LEVEL_VARIANCE = 1.0
"""Of a curve's own level: what a kernel reaches of the ceilings."""

_AMPLITUDE = np.log(0.05)
_LENGTH = np.log(4.0)
_LUCK = np.log(1e-4)
_PRIOR_STD = 1.0  # of each logarithm


@dataclass(frozen=True)
class Readings:
    """What was measured of one curve: inputs `x` [n, d], `y` [n] and variance of `y` [n]."""

    x: Array
    y: Array
    noise: Array


@dataclass(frozen=True)
class CurveProcess:
    """The process of every curve: variances of f and of luck, length of f by input [d]."""

    amplitude: float
    length: Array
    luck: float

    @classmethod
    def fit(cls, curves: Sequence[Readings]) -> CurveProcess:
        """Return the most probable process, the curves being independent; all of one d."""
        start = _usual(curves[0].x.shape[1])

        def objective(logs: Array) -> float:
            process = cls._of(logs)
            misfit = sum(process._misfit(curve) for curve in curves)
            return float(misfit + 0.5 * (((logs - start) / _PRIOR_STD) ** 2).sum())

        bounds = [(value - 4.0, value + 4.0) for value in start]
        found = minimize(objective, start, method="L-BFGS-B", bounds=bounds)
        return cls._of(np.asarray(found.x))

    @classmethod
    def usual(cls, dimensions: int) -> CurveProcess:
        """Return the process to assume before anything is measured."""
        return cls._of(_usual(dimensions))

    @classmethod
    def _of(cls, logs: Array) -> CurveProcess:
        return cls(float(np.exp(logs[0])), np.exp(logs[2:]), float(np.exp(logs[1])))

    def covariance(self, a: Array, b: Array) -> Array:
        """Return the covariance of y at `a` [n, d] and `b` [m, d] of one curve, luck apart."""
        apart = (a[:, None, :] - b[None, :, :]) / self.length
        scaled = np.sqrt(3.0 * (apart**2).sum(axis=-1))
        return np.asarray(_LEVEL_VARIANCE + self.amplitude * (1.0 + scaled) * np.exp(-scaled))

    def variance(self) -> float:
        """Return the variance of y where nothing of the curve was measured, luck apart."""
        return _LEVEL_VARIANCE + self.amplitude

    def left_out(self, curve: Readings) -> tuple[Array, Array]:
        """Return error and its standard deviation [n] of each reading, predicted from the others.

        By Rasmussen and Williams (2006), eq. 5.12.
        """
        inverse = cho_solve((self._factor(curve), True), np.eye(len(curve.y)))
        own = np.diag(inverse)
        return np.asarray(inverse @ curve.y / own), np.asarray(own**-0.5)

    def _factor(self, curve: Readings) -> Array:
        total = self.covariance(curve.x, curve.x)
        total[np.diag_indices_from(total)] += self.luck + curve.noise
        return np.asarray(cholesky(total, lower=True, check_finite=False))

    def _misfit(self, curve: Readings) -> float:
        factor = self._factor(curve)
        weighted = cho_solve((factor, True), curve.y, check_finite=False)
        return float(0.5 * curve.y @ weighted + np.log(np.diag(factor)).sum())


def _usual(dimensions: int) -> Array:
    return np.array([_AMPLITUDE, _LUCK, *[_LENGTH] * dimensions])
