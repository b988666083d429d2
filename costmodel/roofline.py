"""Find the ceilings a device reaches from measurements alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from scipy.optimize import least_squares

from costprof.costmodel.features import Array
from costprof.costmodel.predict import Roofline

# An error of this much in log latency starts to count as an outlier.
_OUTLIER = 0.1
# Weight of the starting guess: decides only what the measurements leave open.
_PRIOR = 0.02


class Bounded(Protocol):
    """Points measured under one ceiling and cache state; arrays are [points].

    `measured_work` holds operations and bytes, `p50` latencies in µs and `variance` that of their
    logarithms.
    """

    @property
    def ceiling(self) -> str: ...
    @property
    def cache_state(self) -> str: ...
    @property
    def measured_work(self) -> tuple[Array, Array]: ...
    @property
    def p50(self) -> Array: ...
    @property
    def variance(self) -> Array: ...


def fit_roofline(curves: Sequence[Bounded]) -> Roofline:
    """Fit launch time, arithmetic ceilings by type and bandwidths by cache state.

    Robust least squares on log latency (soft L1), so that a few odd points do not move a ceiling.
    What no point is bound by (say, arithmetic, where all batches are small) stays at the best
    rate seen.
    """
    ceilings = sorted({curve.ceiling for curve in curves})
    states: list[str] = sorted({curve.cache_state for curve in curves})
    flops = np.concatenate([curve.measured_work[0] for curve in curves])
    size = np.concatenate([curve.measured_work[1] for curve in curves])
    time_us = np.concatenate([curve.p50 for curve in curves])
    counts = [len(curve.p50) for curve in curves]
    ceiling = np.repeat([ceilings.index(curve.ceiling) for curve in curves], counts)
    state = np.repeat([states.index(curve.cache_state) for curve in curves], counts)
    weight = 1.0 / np.sqrt(1.0 + np.concatenate([c.variance for c in curves]) / _OUTLIER**2)

    best_flops = [(flops / time_us)[ceiling == i].max() for i in range(len(ceilings))]
    best_bytes = [(size / time_us)[state == i].max() for i in range(len(states))]
    prior = np.log([time_us.min() / 2, *best_flops, *best_bytes])
    split = 1 + len(ceilings)

    def errors(log_parameters: Array) -> Array:
        parameters = np.exp(log_parameters)
        bound_us = np.maximum(
            flops / parameters[1:split][ceiling], size / parameters[split:][state]
        )
        off = weight * (np.log(parameters[0] + bound_us) - np.log(time_us))
        return np.concatenate([off, _PRIOR * (log_parameters - prior)])

    found = np.exp(least_squares(errors, prior, loss="soft_l1", f_scale=_OUTLIER).x)
    return Roofline(
        peak_flops=dict(zip(ceilings, (found[1:split] * 1e6).tolist(), strict=True)),
        bytes_per_s=dict(zip(states, (found[split:] * 1e6).tolist(), strict=True)),
        launch_us=float(found[0]),
    )
