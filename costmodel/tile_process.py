"""A Gaussian process over tile configs at several token counts: what acquisition believes.

    y = offset[token count] + slope · physics + f(x) + luck + noise

`f` is continuous but rough: exponential covariance with a length a feature (Ornstein-Uhlenbeck,
Rasmussen and Williams 2006, eq. 4.18). Tile parameters have few levels and interact sharply: one
pair of blocks spills where the next is the best there is, and a smooth process is sure of the
opposite. `luck` belongs to one config at one token count and is no noise: measuring again would
show it again.

Hyperparameters are the most probable ones under log-normal priors, found by L-BFGS with exact
gradients from one start, so the same data give the same process.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

from costprof.costmodel.features import Array

_OFFSET_VARIANCE = 0.25
"""Of each token count's own level; y is given relative to the best there."""

_SLOPE_VARIANCE = 0.25
_SLOPE_MEAN = 0.5
"""How much of the physics' estimate to believe before anything was measured: half of it."""

_AMPLITUDE = (np.log(0.3), 0.7)
_LUCK = (np.log(0.015), 0.3)
_LENGTH_STD = 0.8
# Mean and standard deviation of the logarithms of f's amplitude and of the luck, in log latency.

_MOST_FITTED = 120
"""Measurements the hyperparameters are read from; of more, every nth."""


@dataclass(frozen=True)
class TileProcess:
    """A fitted process. `x` [n, d] features, `physics` [n], `group` [n] token count, `y` [n]."""

    x: Array
    physics: Array
    group: Array
    y: Array
    noise: Array
    parameters: Array

    @classmethod
    def fit(cls, x: Array, physics: Array, group: Array, y: Array, noise: Array) -> TileProcess:
        """Fit log latencies `y` of variance `noise` [n]."""
        start = _centre(x.shape[1])
        step = -(-len(y) // _MOST_FITTED)
        some = cls(x[::step], physics[::step], group[::step], y[::step], noise[::step], start)
        spread = (some.x[:, None, :] - some.x[None, :, :]) ** 2
        found = minimize(
            lambda p: some._objective(p, spread),
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=[(p - 3.0, p + 3.0) for p in start],
            options={"maxiter": 40},
        )
        return cls(x, physics, group, y, noise, np.asarray(found.x))

    def predict(self, x: Array, physics: Array, group: Array) -> tuple[Array, Array]:
        """Return mean and standard deviation [m] of the latency a new config truly has, luck in.

        Measuring noise is not in it.
        """
        factor, weights = self._solved
        across = self._smooth(x, self.x) + self._levels(physics, group, self.physics, self.group)
        mean = _SLOPE_MEAN * physics + across @ weights
        explained = solve_triangular(factor, across.T, lower=True)
        own = self._own_variance(physics) + self._luck - np.sum(explained**2, axis=0)
        return mean, np.sqrt(np.maximum(own, 1e-12))

    def at_measured(self) -> Array:
        """Return the mean [n] of the true latency at the measured points, noise taken out."""
        _, weights = self._solved
        return np.asarray(self.y - self.noise * weights)

    def believing(self, x: Array, physics: Array, group: Array) -> TileProcess:
        """Return the process as if the points [m] had been measured where they are expected."""
        mean, _ = self.predict(x, physics, group)
        return TileProcess(
            np.concatenate([self.x, x]),
            np.concatenate([self.physics, physics]),
            np.concatenate([self.group, group]),
            np.concatenate([self.y, mean]),
            np.concatenate([self.noise, np.full(len(mean), float(np.median(self.noise)))]),
            self.parameters,
        )

    @property
    def _luck(self) -> float:
        return float(np.exp(2 * self.parameters[1]))

    @property
    def _solved(self) -> tuple[Array, Array]:
        covariance = self._smooth(self.x, self.x)
        covariance += self._levels(self.physics, self.group, self.physics, self.group)
        covariance[np.diag_indices_from(covariance)] += self._luck + self.noise
        factor = cholesky(covariance, lower=True)
        return factor, cho_solve((factor, True), self.y - _SLOPE_MEAN * self.physics)

    def _own_variance(self, physics: Array) -> Array:
        amplitude = float(np.exp(2 * self.parameters[0]))
        return amplitude + _OFFSET_VARIANCE + _SLOPE_VARIANCE * physics**2

    def _smooth(self, x: Array, other: Array) -> Array:
        scaled, others = x / np.exp(self.parameters[2:]), other / np.exp(self.parameters[2:])
        square = (
            np.sum(scaled**2, axis=1)[:, None]
            + np.sum(others**2, axis=1)[None, :]
            - 2 * scaled @ others.T
        )
        return _covariance(np.sqrt(np.maximum(square, 0.0)), float(np.exp(2 * self.parameters[0])))

    @staticmethod
    def _levels(physics: Array, group: Array, other: Array, others: Array) -> Array:
        same = (group[:, None] == others[None, :]).astype(np.float64)
        slopes = _SLOPE_VARIANCE * physics[:, None] * other[None, :]
        return np.asarray(_OFFSET_VARIANCE * same + slopes)

    def _objective(self, parameters: Array, spread: Array) -> tuple[float, Array]:
        """Return minus the log posterior of `parameters`, and its gradient."""
        amplitude, luck = np.exp(2 * parameters[:2])
        scale = np.exp(-2 * parameters[2:])
        distance = np.sqrt(np.maximum(spread @ scale, 0.0))
        smooth = _covariance(distance, amplitude)
        covariance = smooth + self._levels(self.physics, self.group, self.physics, self.group)
        covariance[np.diag_indices_from(covariance)] += luck + self.noise
        factor = cholesky(covariance, lower=True, check_finite=False)
        centred = self.y - _SLOPE_MEAN * self.physics
        weights = cho_solve((factor, True), centred)
        inverse = cho_solve((factor, True), np.eye(len(centred)))
        value = float(0.5 * centred @ weights + np.log(np.diag(factor)).sum())
        outer = inverse - np.outer(weights, weights)
        # d covariance / d log length = amplitude · e^-r / r · (difference / length)²; 0 at r = 0
        shared = outer * smooth / np.maximum(distance, 1e-9)
        gradient = np.concatenate(
            [
                [np.sum(outer * smooth), luck * np.trace(outer)],
                0.5 * scale * np.tensordot(shared, spread, axes=2),
            ]
        )
        centre = _centre(len(scale))
        width = np.concatenate([[_AMPLITUDE[1], _LUCK[1]], np.full(len(scale), _LENGTH_STD)])
        off = (parameters - centre) / width
        return float(value + 0.5 * off @ off), np.asarray(gradient + off / width)


def _covariance(distance: Array, amplitude: float) -> Array:
    """Exponential covariance at the scaled `distance`."""
    return np.asarray(amplitude * np.exp(-distance))


def _centre(dimensions: int) -> Array:
    """Most probable parameters before the data; lengths are of features that span about [0, 1]."""
    lengths = np.full(dimensions, np.log(0.5 * np.sqrt(max(dimensions, 1))))
    return np.concatenate([[_AMPLITUDE[0], _LUCK[0]], lengths])
