"""Fit what carrying prices to another device misses: the scales a posteriori, then intervals."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch import Tensor

from costprof.costmodel.calibration import fit_scale
from costprof.costmodel.devices import DeviceSpec
from costprof.costmodel.grouped.carry import Carried, Source, carry
from costprof.costmodel.grouped.intervals import COVERAGE, Z90
from costprof.costmodel.grouped.model import Measured
from costprof.costmodel.grouped.transfer import (
    Correction,
    TransferModel,
    TransferScales,
    covariance,
    fresh,
)

Array = npt.NDArray[np.float64]

LEAST_TO_CALIBRATE = 30
"""Measurements from which left-out ones decide how wide intervals are."""

MOST = 1500
"""Measurements taken: the cost is their number cubed."""

_MOST_TO_SCALE = 400  # of them, a sample is enough to find scales by
_PRIOR_STD = 0.25  # of the log of a scale around its start
_EXTREME = 4.5  # prior standard deviations; residuals beyond are cut to that
_ITERATIONS = 40


def fit_transfer(
    source: Source, target: DeviceSpec, measured: Measured | None = None
) -> TransferModel:
    """Return the model of a device of `target`, of which few layers or none were `measured`."""
    if measured is None or not len(measured.points):
        return TransferModel(source, target, fresh(source.spec, target))
    carried = carry(source, measured.points, target)
    start = fresh(source.spec, target)
    correction = fit_correction(carried, measured.latency_us, measured.power_w, start)
    return TransferModel(source, target, correction)


def fit_correction(
    carried: Carried, latency_us: Array, power_w: Array, start: Correction
) -> Correction:
    """Return the correction by `latency_us` [n] measured of the `carried` layers.

    `power_w` [n] is NaN where it is not known; what is known shifts all power by one factor.
    """
    if len(carried) > MOST:
        chosen = np.sort(np.random.default_rng(0).choice(len(carried), MOST, replace=False))
        carried, latency_us, power_w = carried.take(chosen), latency_us[chosen], power_w[chosen]
    limit = _EXTREME * np.sqrt(start.scales.prior_variance(carried.strangeness))
    residual = np.log(latency_us) - carried.log_us
    cut = residual.clip(-limit, limit)
    scales = _likeliest(carried, cut, start.scales)
    found = Correction(
        scales=scales,
        method=carried.method,
        strangeness=carried.strangeness,
        traits=carried.traits,
        residual=cut,
        noise=scales.noise_variance(carried.spread) + carried.variance,
        power_shift=_power_shift(carried, power_w),
    )
    return dataclasses.replace(found, factor=_factor(found, residual))


def _power_shift(carried: Carried, power_w: Array) -> float:
    known = np.isfinite(power_w) & np.isfinite(carried.log_w)
    predicted = np.exp(carried.log_w[known])
    return fit_scale(predicted, power_w[known]).log_factor


def _factor(found: Correction, residual: Array) -> float:
    """Return the conformal half width, never narrower than that of a normal error.

    What was measured may have been chosen where doubt was largest, and need not stand for the rest.
    """
    size = len(residual)
    if size < LEAST_TO_CALIBRATE:
        return Z90
    mean, variance = found.left_out()
    scores = np.abs(residual - mean) / np.sqrt(variance)
    level = min(1.0, np.ceil((size + 1) * COVERAGE) / size)
    return max(Z90, float(np.quantile(scores, level, method="higher")))


def _likeliest(carried: Carried, residual: Array, start: TransferScales) -> TransferScales:
    """Return the scales under which `residual` [n] is likeliest, near `start` (a posteriori)."""
    if len(residual) > _MOST_TO_SCALE:
        at = np.random.default_rng(0).choice(len(residual), _MOST_TO_SCALE, replace=False)
        carried, residual = carried.take(at), residual[at]
    codes = np.unique(carried.method, return_inverse=True)[1]
    strange = carried.strangeness
    shared = torch.from_numpy((codes[:, None] == codes) * strange[:, None] * strange)
    traits = torch.from_numpy(carried.traits)
    squares = (traits[:, None, :] - traits) ** 2
    spread, target = torch.from_numpy(carried.spread), torch.from_numpy(residual)
    doubt = torch.from_numpy(carried.variance)
    prior = torch.from_numpy(start.to_logs())

    def loss(logs: Array) -> tuple[float, Array]:
        free = torch.from_numpy(logs.copy()).requires_grad_()
        scales = TransferScales.of_values(free.exp())
        total: Tensor = covariance(squares, shared, scales, torch.exp)
        noise: Tensor = scales.noise_variance(spread) + doubt
        factor = torch.linalg.cholesky(total + torch.diag(noise))
        half = torch.linalg.solve_triangular(factor, target[:, None], upper=False)
        misfit = 0.5 * (half**2).sum() + factor.diagonal().log().sum()
        value: Any = misfit + 0.5 * (((free - prior) / _PRIOR_STD) ** 2).sum()
        value.backward()
        assert free.grad is not None
        return float(value.detach()), free.grad.numpy()

    found = minimize(
        loss, prior.numpy(), jac=True, method="L-BFGS-B", options={"maxiter": _ITERATIONS}
    )
    return TransferScales.of_values(np.exp(found.x))
