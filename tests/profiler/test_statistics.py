from __future__ import annotations

import numpy as np
import pytest

from costprof.profiler.results import Calls
from costprof.profiler.spec import TimingSpec
from costprof.profiler.statistics import badness, quality_problem, summarise


def calls(*passes: list[float], kernel_sum: float = float("nan")) -> Calls:
    wall = np.concatenate([np.asarray(values) for values in passes])
    return Calls(
        wall_us=wall,
        kernel_sum_us=np.full(wall.size, kernel_sum),
        kernels=np.full(wall.size, np.nan),
        pass_index=np.concatenate([np.full(len(v), i) for i, v in enumerate(passes)]),
    )


def test_quantiles_and_quality_figures() -> None:
    summary = summarise(calls([10.0, 10.0, 10.0], [12.0, 12.0, 12.0], kernel_sum=7.0))
    assert summary.n == 6
    assert summary.p50_us == 11.0
    assert summary.robust_cv == pytest.approx(2 / 11)
    assert summary.pass_disagreement == pytest.approx(2 / 11)
    assert summary.kernel_sum_us == 7.0
    assert summary.kernels_per_call is None


def test_one_outlier_does_not_fail_the_gate_and_a_spread_does() -> None:
    timing = TimingSpec()
    steady = [100.0] * 50
    assert quality_problem(summarise(calls([*steady, 9e6], steady)), timing) is None
    wide = list(np.linspace(50, 150, 50))
    assert "robust CV" in str(quality_problem(summarise(calls(wide, wide)), timing))


def test_passes_that_disagree_fail_the_gate() -> None:
    # Quartiles equal, medians apart: only the comparison of the passes shows it.
    first, second = [100.0] * 60 + [106.0] * 40, [106.0] * 60 + [100.0] * 40
    problem = quality_problem(summarise(calls(first, second)), TimingSpec())
    assert problem is not None
    assert problem.startswith("passes differ by")


def test_badness_orders_attempts_by_their_worse_figure() -> None:
    timing = TimingSpec()
    good = summarise(calls([100.0, 101.0], [100.0, 101.0]))
    bad = summarise(calls([100.0, 101.0], [120.0, 121.0]))
    assert badness(good, timing) < 1 < badness(bad, timing)
