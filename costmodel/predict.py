"""Evaluate the fitted latency model from the parameters in a table's manifest, with numpy alone.

    latency(class, tokens) = roofline(class, tokens) · exp(residual)

where the residual is a Gaussian process: over log2 tokens for a curve of five points or more, over
`costprof.costmodel.features` and all classes together for a class measured once. A curve of two to
four points is straight between them, and a process says only how sure that is. The scikit-learn
that found the hyperparameters is not needed to evaluate them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from costprof.costmodel.features import FEATURES, Array, Subject

_US_PER_S = 1e6
_FORMAT = 2


@dataclass(frozen=True)
class Roofline:
    """Ceilings a device was seen to reach.

    Attributes:
        peak_flops: Operations per second by "dtype/quantisation".
        bytes_per_s: Memory traffic by cache state.
        launch_us: Time of a call that does nothing.
    """

    peak_flops: dict[str, float]
    bytes_per_s: dict[str, float]
    launch_us: float

    def latency_us(self, subject: Subject, flops: Array, size: Array) -> Array:
        """Return launch + max(compute, memory) at `flops` and `size` bytes, all [n]."""
        compute = flops / self.peak_flops[subject.ceiling]
        memory = size / self.bytes_per_s[subject.cache_state]
        return self.launch_us + np.maximum(compute, memory) * _US_PER_S


@dataclass(frozen=True)
class GaussianProcess:
    """A fitted process with a Matérn-3/2 kernel (Rasmussen and Williams, 2006, eq. 2.25 and 4.17).

    Attributes:
        x: [n, d] inputs.
        y: [n] targets.
        noise: [n] variance of each target, `white` not included.
        mean: Value far from all inputs.
        amplitude: Prior variance.
        length_scale: [d].
        white: Variance common to all targets, also of the one predicted.
        doubt: Factor on the standard deviation, calibrated on left-out points: a process fitted
            to ten points is too sure of itself.
        doubt_beyond: The same outside the range of the inputs, where it was calibrated apart.
        straight: The process gives the standard deviation alone; see `straight_us`.
    """

    x: Array
    y: Array
    noise: Array
    mean: float
    amplitude: float
    length_scale: Array
    white: float
    doubt: float = 1.0
    doubt_beyond: float | None = None
    straight: bool = False

    def predict(self, x: Array) -> tuple[Array, Array]:
        """Return mean and standard deviation [m] of a new noisy target at `x` [m, d]."""
        factor, weights = self._solved
        cross = self._kernel(x, self.x)
        explained = np.linalg.solve(factor, cross.T)
        variance = self.amplitude + self.white - (explained**2).sum(axis=0)
        doubt = np.full(len(x), self.doubt)
        if self.doubt_beyond is not None:
            beyond = ((x < self.x.min(axis=0)) | (x > self.x.max(axis=0))).any(axis=1)
            doubt[beyond] = self.doubt_beyond
        return self.mean + cross @ weights, doubt * np.sqrt(np.maximum(variance, 0.0))

    @cached_property
    def _solved(self) -> tuple[Array, Array]:
        """Cholesky factor L of the covariance K of the targets, and K⁻¹ (y - mean)."""
        covariance = self._kernel(self.x, self.x) + np.diag(self.noise + self.white)
        factor = np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)
        half = np.linalg.solve(factor, self.y - self.mean)
        return factor, np.asarray(np.linalg.solve(factor.T, half), dtype=np.float64)

    def _kernel(self, a: Array, b: Array) -> Array:
        apart = (a[:, None, :] - b[None, :, :]) / self.length_scale
        scaled = np.sqrt(3.0 * (apart**2).sum(axis=-1))
        kernel: Array = self.amplitude * (1.0 + scaled) * np.exp(-scaled)
        return kernel

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {
            "x": self.x.tolist(),
            "y": self.y.tolist(),
            "noise": self.noise.tolist(),
            "mean": self.mean,
            "amplitude": self.amplitude,
            "length_scale": self.length_scale.tolist(),
            "white": self.white,
            "doubt": self.doubt,
            "doubt_beyond": self.doubt_beyond,
            "straight": self.straight,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GaussianProcess:
        """Read what `to_dict` wrote."""
        return cls(
            x=np.array(values["x"]),
            y=np.array(values["y"]),
            noise=np.array(values["noise"]),
            mean=values["mean"],
            amplitude=values["amplitude"],
            length_scale=np.array(values["length_scale"]),
            white=values["white"],
            doubt=values["doubt"],
            doubt_beyond=values["doubt_beyond"],
            straight=values["straight"],
        )


def straight_us(known: Array, latency_us: Array, tokens: Array) -> Array:
    """Return latency at `tokens` [m], straight between points at `known` [n ≥ 2], ascending.

    Beyond the ends along the end segments, with two limits: more tokens never take less time, and
    fewer take no less than their share of the first point's, so that no price reaches zero.
    """
    slopes = np.maximum(np.diff(latency_us) / np.diff(known), 0.0)
    first = min(float(slopes[0]), float(latency_us[0] / known[0]))
    below = np.minimum(tokens - known[0], 0.0) * first
    above = np.maximum(tokens - known[-1], 0.0) * slopes[-1]
    result: Array = np.interp(tokens, known, latency_us) + below + above
    return result


@dataclass(frozen=True)
class LatencyModel:
    """Roofline and residual processes: one a curve measured more than once, one for the rest."""

    roofline: Roofline
    pooled: GaussianProcess
    own: dict[str, GaussianProcess] = field(default_factory=dict)

    def predict(self, subject: Subject, tokens: Array) -> tuple[Array, Array]:
        """Return median latency in µs and the std of its logarithm, both at `tokens` [n]."""
        own = self.own.get(subject.key)
        if own is not None:
            residual, std = own.predict(np.log2(tokens)[:, None])
        else:
            residual, std = self.pooled.predict(subject.features(tokens))
        if own is not None and own.straight:
            known = np.rint(2.0 ** own.x[:, 0])
            measured_us = self._ceiling_us(subject, known) * np.exp(own.y)
            return straight_us(known, measured_us, tokens), std
        return self._ceiling_us(subject, tokens) * np.exp(residual), std

    def _ceiling_us(self, subject: Subject, tokens: Array) -> Array:
        return self.roofline.latency_us(subject, *subject.work(tokens))

    def to_dict(self) -> dict[str, Any]:
        """Return the model as plain JSON values, as the manifest keeps it."""
        return {
            "format": _FORMAT,
            "roofline": {
                "peak_flops": self.roofline.peak_flops,
                "bytes_per_s": self.roofline.bytes_per_s,
                "launch_us": self.roofline.launch_us,
            },
            "features": list(FEATURES),
            "pooled": self.pooled.to_dict(),
            "own": {key: process.to_dict() for key, process in self.own.items()},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LatencyModel:
        """Read what `to_dict` wrote."""
        return cls(
            roofline=Roofline(**values["roofline"]),
            pooled=GaussianProcess.from_dict(values["pooled"]),
            own={key: GaussianProcess.from_dict(one) for key, one in values["own"].items()},
        )
