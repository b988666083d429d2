"""Find the scales of the field: marginal likelihood over samples of many groups at once."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch import Tensor

from costprof.costmodel.grouped.field import Apart, FieldScales, Sites, covariance

Array = npt.NDArray[np.float64]

_SAMPLE = 96  # layers of a group: enough pairs at all distances, and cheap
_MOST_GROUPS = 24
_LEAST = 48
_PRIOR_STD = 1.0  # of the log of a scale around its default
_CLIP = (-1.0, 1.5)  # residuals beyond are of another kind, and would stretch every scale
_ITERATIONS = 40
_UNLIKELY = 1e12  # the loss where rounding leaves a covariance that is not positive


def fit_scales(
    sites: Sites, residual: Array, groups: npt.NDArray[np.str_], start: FieldScales
) -> FieldScales:
    """Return the scales under which `residual` [n] is likeliest, groups being independent.

    Maximum a posteriori around `start`, whose values stay where no group has layers enough.
    """
    rng = np.random.default_rng(0)
    names = [name for name in np.unique(groups) if (groups == name).sum() >= _LEAST]
    if not names:
        return start
    chosen = [names[at] for at in rng.permutation(len(names))[:_MOST_GROUPS]]
    size = min(_SAMPLE, *((groups == name).sum() for name in chosen))
    samples = [rng.choice(np.flatnonzero(groups == name), size, replace=False) for name in chosen]
    parts = [Apart.between(sites.take(at), sites.take(at)) for at in samples]
    stacked: dict[str, Any] = {
        field.name: torch.from_numpy(np.stack([getattr(part, field.name) for part in parts]))
        for field in dataclasses.fields(Apart)
    }
    apart = Apart(**stacked)
    spread = torch.from_numpy(np.stack([sites.spread[at] for at in samples]))
    target = torch.from_numpy(np.stack([residual[at].clip(*_CLIP) for at in samples]))
    prior = torch.from_numpy(np.log(np.array(dataclasses.astuple(start))))

    def loss(logs: Array) -> tuple[float, Array]:
        free = torch.from_numpy(logs.copy()).requires_grad_()
        try:
            value = _negative_log_posterior(free, prior, apart, spread, target)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            return _UNLIKELY, np.zeros_like(logs)
        value.backward()  # type: ignore[no-untyped-call]
        assert free.grad is not None
        return float(value.detach()), free.grad.numpy()

    found = minimize(
        loss, prior.numpy(), jac=True, method="L-BFGS-B", options={"maxiter": _ITERATIONS}
    )
    return FieldScales(*np.exp(found.x).tolist())


def _negative_log_posterior(
    logs: Tensor, prior: Tensor, apart: Apart, spread: Tensor, target: Tensor
) -> Tensor:
    tensors: Any = logs.exp().unbind()
    scales = FieldScales(*tensors)
    total: Tensor = covariance(apart, scales, torch.exp)
    noise: Tensor = scales.noise_variance(spread)
    factor = torch.linalg.cholesky(total + torch.diag_embed(noise))
    half = torch.linalg.solve_triangular(factor, target[..., None], upper=False)[..., 0]
    misfit = 0.5 * (half**2).sum() + factor.diagonal(dim1=-2, dim2=-1).log().sum()
    posterior: Tensor = misfit + 0.5 * (((logs - prior) / _PRIOR_STD) ** 2).sum()
    return posterior
