"""Predictions from the manifest's parameters, without the library that found them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from costprof.core.expert import ExpertClass
from costprof.costmodel.measurements import measured_curves
from costprof.costmodel.predict import GaussianProcess
from costprof.costmodel.residual import fit_latency, fit_own, fit_pooled, log_residual, regressor
from costprof.costmodel.roofline import fit_roofline

DENSE = ExpertClass(d_model=128, d_ff=256, dtype="float32")
WIDE = ExpertClass(d_model=128, d_ff=384, dtype="float32")


@pytest.fixture
def curves(world: Any) -> Any:
    made = world(wiggle=0.2, noise=0.02)
    rows = [made.row(DENSE, n) for n in (1, 2, 4, 6, 8, 16, 32)]
    return measured_curves(rows + [made.row(WIDE, n) for n in (1, 8, 64)])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_process_predicts_as_scikit_learn_does(curves: Any) -> None:
    curve = max(curves, key=lambda each: len(each.tokens))
    roofline = fit_roofline(curves)
    ours = fit_own(curve, roofline)
    theirs = regressor(1, curve.variance)
    theirs.fit(np.log2(curve.tokens)[:, None], log_residual(curve, roofline) - ours.mean)
    asked = np.log2(np.array([1.0, 3.0, 5.0, 16.0, 100.0]))[:, None]
    mean, std = theirs.predict(asked, return_std=True)
    found_mean, found_std = ours.predict(asked)
    np.testing.assert_allclose(found_mean, mean + ours.mean, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found_std, std, rtol=1e-6)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_pooled_process_predicts_as_scikit_learn_does(curves: Any) -> None:
    ours = fit_pooled(curves, fit_roofline(curves))
    theirs = regressor(ours.x.shape[1], ours.noise)
    theirs.fit(ours.x, ours.y - ours.mean)
    mean, std = theirs.predict(ours.x + 0.3, return_std=True)
    found_mean, found_std = ours.predict(ours.x + 0.3)
    np.testing.assert_allclose(found_mean, mean + ours.mean, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found_std, std, rtol=1e-5)


def test_far_from_all_points_the_prior_is_left(curves: Any) -> None:
    process = fit_own(curves[0], fit_roofline(curves))
    mean, std = process.predict(np.array([[1e4]]))
    assert mean[0] == pytest.approx(process.mean)
    assert std[0] == pytest.approx(np.sqrt(process.amplitude + process.white))


def test_a_process_reads_back_as_written(curves: Any) -> None:
    process = fit_own(curves[0], fit_roofline(curves))
    again = GaussianProcess.from_dict(json.loads(json.dumps(process.to_dict())))
    np.testing.assert_array_equal(again.predict(process.x), process.predict(process.x))


def test_the_model_predicts_from_the_manifest_without_scikit_learn(curves: Any) -> None:
    model = fit_latency(curves)
    few = min(curves, key=lambda each: len(each.tokens))
    expected = model.predict(few, np.array([2.0, 20.0]))
    code = (
        "import json, sys, numpy as np\n"
        "from costprof.core.expert import ExpertClass, Kernel\n"
        "from costprof.costmodel.features import Subject\n"
        "from costprof.costmodel.predict import LatencyModel\n"
        "given = json.load(sys.stdin)\n"
        "subject = Subject(expert=ExpertClass(**given['expert']), op='expert',\n"
        "                  kernel=Kernel(**given['kernel']), cache_state='cold')\n"
        "model = LatencyModel.from_dict(given['model'])\n"
        "latency, std = model.predict(subject, np.array([2.0, 20.0]))\n"
        "assert not {'sklearn', 'scipy', 'pandas'} & set(sys.modules)\n"
        "print(json.dumps([latency.tolist(), std.tolist()]))\n"
    )
    given = {
        "expert": few.expert.to_dict(),
        "kernel": few.kernel.to_dict(),
        "model": model.to_dict(),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=True,
    )
    np.testing.assert_allclose(json.loads(done.stdout), expected, rtol=1e-9)


def test_a_curve_of_few_points_borrows_how_smooth_it_is(curves: Any) -> None:
    model = fit_latency(curves)
    many, few = sorted(curves, key=lambda each: -len(each.tokens))
    lent, borrowed = model.own[many.key], model.own[few.key]
    assert borrowed.amplitude == lent.amplitude
    assert borrowed.length_scale.tolist() == lent.length_scale.tolist()
    assert len(borrowed.y) == 3
    latency, std = model.predict(few, few.tokens)
    np.testing.assert_allclose(latency, few.p50, rtol=0.1)
    assert (std > 0).all()


def test_a_class_measured_once_learns_from_the_others(curves: Any, world: Any) -> None:
    made = world(wiggle=0.2, noise=0.02)
    once = measured_curves([made.row(ExpertClass(d_model=128, d_ff=320, dtype="float32"), 8)])
    model = fit_latency(curves + once)
    assert once[0].key not in model.own
    latency, std = model.predict(once[0], np.array([8.0, 16.0]))
    assert latency[0] == pytest.approx(once[0].p50[0], rel=0.25)
    assert (std > 0).all()


def test_doubt_widens_and_survives_the_manifest(curves: Any) -> None:
    process = fit_own(curves[0], fit_roofline(curves))
    wide = replace(process, doubt=3.0)
    np.testing.assert_allclose(wide.predict(wide.x)[1], 3 * process.predict(process.x)[1])
    assert GaussianProcess.from_dict(wide.to_dict()).doubt == 3.0
