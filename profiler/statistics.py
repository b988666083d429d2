"""Statistics of repeated timings, and whether to believe them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from costprof.profiler.results import Calls, Floats
from costprof.profiler.spec import TimingSpec


@dataclass(frozen=True, slots=True)
class Summary:
    """Latency quantiles of one scenario and its quality figures.

    `robust_cv` is (p75 - p25) / p50; `pass_disagreement` the spread of the medians of
    the passes, (largest - smallest) / p50.
    """

    n: int
    calls_per_sample: int
    mean_us: float
    p05_us: float
    p25_us: float
    p50_us: float
    p75_us: float
    p95_us: float
    robust_cv: float
    pass_disagreement: float
    kernel_sum_us: float | None
    kernels_per_call: float | None


def summarise(calls: Calls) -> Summary:
    """Reduce the calls of one scenario, in microseconds."""
    wall = calls.wall_us
    p05, p25, p50, p75, p95 = (float(q) for q in np.quantile(wall, [0.05, 0.25, 0.5, 0.75, 0.95]))
    medians = [np.median(wall[calls.pass_index == index]) for index in np.unique(calls.pass_index)]
    return Summary(
        n=int(wall.size),
        calls_per_sample=calls.calls_per_sample,
        mean_us=float(wall.mean()),
        p05_us=p05,
        p25_us=p25,
        p50_us=p50,
        p75_us=p75,
        p95_us=p95,
        robust_cv=(p75 - p25) / p50,
        pass_disagreement=float((max(medians) - min(medians)) / p50),
        kernel_sum_us=_median_or_none(calls.kernel_sum_us),
        kernels_per_call=_median_or_none(calls.kernels),
    )


def quality_problem(summary: Summary, timing: TimingSpec) -> str | None:
    """Say which limit of the quality gate the timings break, or None."""
    if not summary.robust_cv <= timing.max_robust_cv:
        return f"robust CV {summary.robust_cv:.1%} is above {timing.max_robust_cv:.0%}"
    if not summary.pass_disagreement <= timing.max_pass_disagreement:
        return (
            f"passes differ by {summary.pass_disagreement:.1%}, "
            f"more than {timing.max_pass_disagreement:.0%}"
        )
    return None


def badness(summary: Summary, timing: TimingSpec) -> float:
    """How far the worse of the two quality figures is from its limit: below 1 is good."""
    return max(
        summary.robust_cv / timing.max_robust_cv,
        summary.pass_disagreement / timing.max_pass_disagreement,
    )


def _median_or_none(values: Floats) -> float | None:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if known.size else None
