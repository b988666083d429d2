"""Learn what the roofline misses, as a Gaussian process on log(measured / roofline)."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from costprof.costmodel.features import FEATURES, Array
from costprof.costmodel.measurements import MeasuredCurve
from costprof.costmodel.predict import GaussianProcess, LatencyModel, Roofline
from costprof.costmodel.roofline import fit_roofline

MIN_OWN_POINTS = 5
"""Token counts from which a curve's process finds its own hyperparameters."""

MIN_POINTS = 2
"""Token counts from which a curve has a process, if need be a borrowed one."""

_MAX_POOLED_POINTS = 400
_AMPLITUDE = (1e-3, 4.0)
_LENGTH = (0.5, 30.0)
_WHITE = (1e-6, 1e-2)
# Amplitude, length and white noise where no curve can lend any: residuals of about 20 % that
# change over a factor of 16 in tokens, seen through 1 % of noise.
_USUAL = (0.05, 4.0, 1e-4)


def fit_latency(curves: list[MeasuredCurve]) -> LatencyModel:
    """Fit ceilings, a process for every curve measured more than once and one for the rest."""
    roofline = fit_roofline(curves)
    own = {
        curve.key: fit_own(curve, roofline)
        for curve in curves
        if len(curve.tokens) >= MIN_OWN_POINTS
    }
    lenders = list(own.values())
    for curve in curves:
        if MIN_POINTS <= len(curve.tokens) < MIN_OWN_POINTS:
            own[curve.key] = borrow(curve, roofline, lenders)
    return LatencyModel(roofline=roofline, pooled=fit_pooled(curves, roofline), own=own)


def log_residual(curve: MeasuredCurve, roofline: Roofline) -> Array:
    """Return log(measured / roofline) at the measured tokens: [points]."""
    return np.log(curve.p50 / roofline.latency_us(curve, *curve.measured_work))


def fit_own(curve: MeasuredCurve, roofline: Roofline) -> GaussianProcess:
    """Fit one curve's residual over log2 tokens."""
    return _fit(np.log2(curve.tokens)[:, None], log_residual(curve, roofline), curve.variance)


def borrow(
    curve: MeasuredCurve, roofline: Roofline, lenders: list[GaussianProcess]
) -> GaussianProcess:
    """Return the process of a curve of few points, with the lenders' median hyperparameters.

    Few points do not tell how smooth a curve is, but curves of one device resemble each other
    enough to say how unsure a straight line between the points is. For the line itself they do
    not: on CPUs and GPUs alike it came closer than a process of borrowed smoothness.
    """
    lent = [
        (p.amplitude, float(p.length_scale[0]), p.white)
        for p in lenders
        if len(p.y) >= MIN_OWN_POINTS
    ]
    amplitude, length, white = np.median(lent, axis=0).tolist() if lent else _USUAL
    y = log_residual(curve, roofline)
    return GaussianProcess(
        x=np.log2(curve.tokens)[:, None],
        y=y,
        noise=curve.variance,
        mean=_mean(y, curve.variance),
        amplitude=amplitude,
        length_scale=np.array([length]),
        white=white,
        straight=True,
    )


def fit_pooled(
    curves: list[MeasuredCurve], roofline: Roofline, like: GaussianProcess | None = None
) -> GaussianProcess:
    """Fit the residual of all curves over their features, or with the hyperparameters of `like`.

    Curves of few points enter whole; of the others every nth point where all together would be
    more than the process can hold.
    """
    few = [curve for curve in curves if len(curve.tokens) < MIN_OWN_POINTS]
    many = [curve for curve in curves if len(curve.tokens) >= MIN_OWN_POINTS]
    x, y, noise = _stack(few, roofline)
    more_x, more_y, more_noise = _stack(many, roofline)
    step = max(1, -(-len(more_y) // max(_MAX_POOLED_POINTS - len(y), 50)))
    x = np.concatenate([x, more_x[::step]])
    y = np.concatenate([y, more_y[::step]])
    noise = np.concatenate([noise, more_noise[::step]])
    if like is None:
        return _fit(x, y, noise)
    return GaussianProcess(
        x, y, noise, _mean(y, noise), like.amplitude, like.length_scale, like.white
    )


def _stack(curves: list[MeasuredCurve], roofline: Roofline) -> tuple[Array, Array, Array]:
    if not curves:
        return np.empty((0, len(FEATURES))), np.empty(0), np.empty(0)
    return (
        np.concatenate([curve.features(curve.tokens) for curve in curves]),
        np.concatenate([log_residual(curve, roofline) for curve in curves]),
        np.concatenate([curve.variance for curve in curves]),
    )


def regressor(dimensions: int, noise: Array) -> GaussianProcessRegressor:
    """Return the scikit-learn process whose hyperparameters are looked for."""
    kernel = ConstantKernel(0.1, _AMPLITUDE) * Matern(
        np.full(dimensions, 3.0), _LENGTH, nu=1.5
    ) + WhiteKernel(1e-4, _WHITE)
    return GaussianProcessRegressor(kernel, alpha=noise, n_restarts_optimizer=1, random_state=0)


def _fit(x: Array, y: Array, noise: Array) -> GaussianProcess:
    mean = _mean(y, noise)
    process = regressor(x.shape[1], noise)
    with warnings.catch_warnings():
        # A hyperparameter at its bound is an answer here: the bounds are the prior.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(x, y - mean)
    found = process.kernel_
    return GaussianProcess(
        x=x,
        y=y,
        noise=noise,
        mean=mean,
        amplitude=float(found.k1.k1.constant_value),
        length_scale=np.atleast_1d(found.k1.k2.length_scale).astype(np.float64),
        white=float(found.k2.noise_level),
    )


def _mean(y: Array, noise: Array) -> float:
    return float(np.average(y, weights=1.0 / noise))
