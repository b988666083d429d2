"""A left-out point must not help to predict itself, and doubt must reach the prices."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from costprof.core.expert import ExpertClass
from costprof.costmodel.assemble import latency_quantiles
from costprof.costmodel.composition import predict_left_out
from costprof.costmodel.measurements import MeasuredCurve, measured_curves
from costprof.costmodel.predict import LatencyModel, straight_us
from costprof.costmodel.residual import fit_latency
from costprof.costmodel.validation import Fold, calibrated, leave_one_out

MANY = ExpertClass(d_model=128, d_ff=256, dtype="float32")
FEW = ExpertClass(d_model=128, d_ff=384, dtype="float32")


def curves_of(made: Any, spoilt: tuple[ExpertClass, int] | None = None) -> list[MeasuredCurve]:
    """Return a curve of seven points and one of four, one point of them 100 times too slow."""
    rows = [made.row(MANY, n) for n in (1, 2, 4, 6, 8, 16, 32)]
    rows += [made.row(FEW, n) for n in (1, 4, 16, 64)]
    for row in rows:
        if spoilt == (ExpertClass(**{n: row[n] for n in MANY.to_dict()}), row["tokens"]):
            for name in ("p05", "p50", "p95"):
                row[f"latency_us_{name}"] *= 100
    return measured_curves(rows)


def folds_of(curves: list[MeasuredCurve]) -> dict[tuple[ExpertClass, int], Fold]:
    folds = leave_one_out(curves, fit_latency(curves))
    return {(fold.curve.expert, int(fold.curve.tokens[fold.point])): fold for fold in folds}


@pytest.mark.parametrize(
    ("expert", "tokens", "kind"),
    [(MANY, 6, "interior"), (MANY, 32, "end"), (FEW, 4, "few-inside"), (FEW, 64, "few-end")],
)
def test_a_left_out_point_does_not_move_its_own_prediction(
    world: Any, expert: ExpertClass, tokens: int, kind: str
) -> None:
    made = world(wiggle=0.2, noise=0.02)
    sound = folds_of(curves_of(made))[expert, tokens]
    spoilt = folds_of(curves_of(made, (expert, tokens)))[expert, tokens]
    assert sound.kind == spoilt.kind == kind
    assert spoilt.measured == pytest.approx(100 * sound.measured)
    for name in ("model", "roofline", "linear"):
        assert getattr(spoilt, name) == pytest.approx(getattr(sound, name), rel=1e-9)


def test_a_left_out_layer_does_not_move_its_own_prediction() -> None:
    draw = np.random.default_rng(0)
    sums = draw.uniform(100.0, 900.0, 6)
    measured = (30.0 + 0.8 * sums) * draw.uniform(0.9, 1.1, 6)
    sound = predict_left_out(sums, measured, np.ones(6))
    for point in range(6):
        spoilt = measured.copy()
        spoilt[point] *= 100
        again = predict_left_out(sums, spoilt, np.ones(6))
        assert again[point] == pytest.approx(sound[point], rel=1e-12)
        assert not np.allclose(np.delete(again, point), np.delete(sound, point))


@pytest.mark.parametrize("expert", [MANY, FEW])
def test_doubt_widens_prices_beyond_the_spread_of_calls(world: Any, expert: ExpertClass) -> None:
    curves = curves_of(world(wiggle=0.2, noise=0.02))
    model = fit_latency(curves)
    model = calibrated(model, leave_one_out(curves, model))
    (curve,) = (each for each in curves if each.expert == expert)
    tokens = np.union1d(curve.tokens, [3.0, 100.0])
    quantiles = latency_quantiles(curve, model, tokens)
    low, median, high = quantiles[:, ~np.isin(tokens, curve.tokens)]
    # Calls spread from 0.97 to 1.05 times the median at every measured point.
    assert (low < 0.97 * 0.99 * median).all()
    assert (high > 1.05 * 1.01 * median).all()


def test_few_points_are_doubted_apart_beyond_them_and_read_back(world: Any) -> None:
    curves = curves_of(world(wiggle=0.2, noise=0.02))
    (curve,) = (each for each in curves if each.expert == FEW)
    model = fit_latency(curves)
    plain = model.own[curve.key]
    doubted = dataclasses.replace(plain, doubt=2.0, doubt_beyond=3.0)
    changed = dataclasses.replace(model, own={curve.key: doubted})
    tokens = np.array([2.0, 100.0])
    latency, std = LatencyModel.from_dict(changed.to_dict()).predict(curve, tokens)
    np.testing.assert_allclose(std / model.predict(curve, tokens)[1], [2.0, 3.0])
    np.testing.assert_allclose(latency, straight_us(curve.tokens, curve.p50, tokens))


def test_a_straight_price_neither_falls_beyond_the_points_nor_reaches_zero() -> None:
    known = np.array([8.0, 16.0])
    steep = straight_us(known, np.array([10.0, 100.0]), np.array([1.0, 8.0, 12.0, 16.0, 32.0]))
    np.testing.assert_allclose(steep, [1.25, 10.0, 55.0, 100.0, 280.0])
    falling = straight_us(known, np.array([100.0, 10.0]), np.array([1.0, 12.0, 32.0]))
    np.testing.assert_allclose(falling, [100.0, 55.0, 10.0])
