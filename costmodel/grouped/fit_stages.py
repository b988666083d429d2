"""Find the constants of the analytic time in measurements."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from costprof.costmodel.grouped.stage_time import StageConstants, stage_times
from costprof.costmodel.grouped.work import LayerWork, taken

Array = npt.NDArray[np.float64]

_OUTLIER = 0.1  # log latency from which an error counts as an outlier
_PRIOR = 0.3  # weight of the start: decides what the measurements leave open
_MOST_POINTS = 4000
_MOST_EVALUATIONS = 60


def fit_stage_constants(
    work: LayerWork, latency_us: Array, start: StageConstants
) -> StageConstants:
    """Return the constants under which the analytic times come closest to `latency_us` [n].

    Robust least squares on log latency (soft L1), pulled towards `start` with the weight of a
    third of a unit of log error.
    """
    if len(latency_us) > _MOST_POINTS:
        chosen = np.random.default_rng(0).choice(len(latency_us), _MOST_POINTS, replace=False)
        work, latency_us = taken(work, chosen), latency_us[chosen]
    target, prior = np.log(latency_us), start.to_logs()

    def errors(logs: Array) -> Array:
        total = stage_times(work, StageConstants.of_logs(logs)).total_us
        return np.concatenate([np.log(total) - target, _PRIOR * (logs - prior)])

    found = least_squares(
        errors, prior, loss="soft_l1", f_scale=_OUTLIER, max_nfev=_MOST_EVALUATIONS
    )
    return StageConstants.of_logs(found.x)
