"""The learned parts: trees as arrays, the field of a group, intervals."""

from __future__ import annotations

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor

from costprof.costmodel.grouped.field import Apart, Field, FieldScales, Sites, covariance
from costprof.costmodel.grouped.fit_field import fit_scales
from costprof.costmodel.grouped.fit_trees import fit_trees
from costprof.costmodel.grouped.intervals import Calibration, doubt_bins
from costprof.costmodel.grouped.trees import Trees


def sites(octaves: np.ndarray, curve: np.ndarray) -> Sites:
    size = len(octaves)
    return Sites(
        octaves=octaves,
        tp=curve.astype(float),
        ep=np.zeros(size),
        skewed=np.zeros(size),
        routing=np.zeros(size, dtype=np.int64),
        regime=np.floor(octaves / 4),
        spread=np.zeros(size),
    )


def test_trees_as_arrays_predict_what_scikit_learn_predicts() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(900, 4))
    y = np.sin(x[:, 0]) + 0.3 * x[:, 1] * (x[:, 2] > 0)
    trees = fit_trees(x, y)
    reference = HistGradientBoostingRegressor(
        max_iter=75,
        learning_rate=0.08,
        max_leaf_nodes=31,
        min_samples_leaf=20,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=0,
    ).fit(x, y)
    fresh = rng.normal(size=(5000, 4))
    assert np.abs(trees.predict(fresh) - reference.predict(fresh)).max() < 1e-5
    again = Trees.of_arrays(trees.to_arrays("t"), "t")
    assert (again.predict(fresh) == trees.predict(fresh)).all()
    assert trees.predict(fresh[:0]).shape == (0,)


def test_a_field_goes_through_its_points_and_back_to_nothing_far_away() -> None:
    scales = FieldScales(noise_std=1e-4, group_std=1e-6)
    known = sites(np.array([0.0, 4.0, 8.0]), np.zeros(3))
    residual = np.array([0.05, -0.02, 0.04])
    field = Field(known, residual, scales)
    mean, variance = field.predict(known)
    assert np.abs(mean - residual).max() < 1e-3
    assert variance.max() < 1e-6
    far, doubt = field.predict(sites(np.array([60.0]), np.array([40.0])))
    assert abs(far[0]) < 1e-3
    assert doubt[0] > 0.9 * scales.prior_variance()


def test_leaving_parts_out_is_what_conditioning_without_them_gives() -> None:
    rng = np.random.default_rng(2)
    octaves, curve = rng.uniform(0, 12, 40), rng.integers(0, 4, 40)
    residual, scales = 0.05 * rng.normal(size=40), FieldScales()
    mean, variance = Field(sites(octaves, curve), residual, scales).left_out(curve)
    for part in range(4):
        out = curve == part
        rest = Field(sites(octaves[~out], curve[~out]), residual[~out], scales)
        expected = rest.predict(sites(octaves[out], curve[out]))
        assert np.allclose(mean[out], expected[0], atol=1e-9)
        assert np.allclose(variance[out], expected[1], atol=1e-9)


def test_scales_tell_smooth_residuals_from_noise() -> None:
    rng = np.random.default_rng(3)
    octaves = np.tile(np.linspace(0, 12, 50), 4)
    curve, groups = np.repeat(np.arange(4), 50), np.repeat(["a", "b", "c", "d"], 50)
    where = sites(octaves, curve)
    noise = 0.05 * rng.normal(size=200)
    smooth = 0.05 * np.sin(octaves + curve)
    found = [fit_scales(where, values, groups, FieldScales()) for values in (noise, smooth)]
    assert found[0].noise_std > 3 * found[1].noise_std
    too_few = fit_scales(where.take(np.arange(5)), noise[:5], groups[:5], FieldScales())
    assert too_few == FieldScales()


def test_covariances_are_positive_definite() -> None:
    rng = np.random.default_rng(4)
    where = sites(rng.uniform(0, 12, 60), rng.integers(0, 5, 60))
    total = covariance(Apart.between(where, where), FieldScales())
    assert np.allclose(total, total.T)
    assert np.linalg.eigvalsh(total + 1e-8 * np.eye(60)).min() > 0


def test_intervals_hold_for_errors_like_those_they_were_calibrated_by() -> None:
    rng = np.random.default_rng(5)
    novelty, tokens = rng.uniform(size=4000), 2.0 ** rng.integers(0, 12, 4000)
    bins = doubt_bins(novelty, rng.random(4000) < 0.8, tokens)
    std = 0.01 + 0.05 * novelty
    error = std * rng.standard_t(3, size=4000) * (1.0 + (tokens > 64))
    first = np.arange(4000) < 2000
    calibration = Calibration.of_scores(np.abs(error[first]) / std[first], bins[first])
    inside = np.abs(error) <= calibration.half_width(std, bins)
    assert 0.87 < inside[~first].mean() < 0.93
    assert Calibration.of_list(calibration.to_list()).to_list() == calibration.to_list()


def test_without_scores_intervals_are_those_of_a_normal_error() -> None:
    empty = Calibration.of_scores(np.empty(0), np.empty(0, dtype=np.int64))
    half = empty.half_width(np.array([1.0]), doubt_bins(np.ones(1), np.ones(1, bool), np.ones(1)))
    assert half.round(3).tolist() == [1.645]
