"""Layers so alike that rounding leaves their covariance no longer positive."""

from __future__ import annotations

import dataclasses

import numpy as np
from public_layers import public_table

from costprof.costmodel.grouped.field import Field, FieldScales, Sites
from costprof.costmodel.grouped.fit_field import fit_scales
from costprof.costmodel.grouped.public import public_points

ALIKE = 40


def test_scales_of_layers_measured_twice_alike_are_found() -> None:
    points = public_points(public_table())
    at = np.flatnonzero(points.group == points.group[0])[:ALIKE]
    twice = points.take(np.tile(at, 2))
    residual = np.tile(0.1 * np.random.default_rng(0).standard_normal(ALIKE), 2)
    scales = fit_scales(Sites.of_points(twice), residual, twice.group, FieldScales())
    assert all(np.isfinite(value) and value > 0.0 for value in dataclasses.astuple(scales))
    assert scales.noise_std < FieldScales().noise_std


def test_a_field_of_layers_measured_twice_without_noise_returns_them() -> None:
    points = public_points(public_table())
    at = np.flatnonzero(points.curve == points.curve[0])
    once, twice = Sites.of_points(points.take(at)), Sites.of_points(points.take(np.tile(at, 2)))
    residual = np.linspace(-0.1, 0.1, len(at))
    scales = dataclasses.replace(FieldScales(), noise_std=1e-12, draw_factor=1e-12)
    mean, variance = Field(twice, np.tile(residual, 2), scales).predict(once)
    assert np.abs(mean - residual).max() < 0.01
    assert (variance >= 0.0).all()
