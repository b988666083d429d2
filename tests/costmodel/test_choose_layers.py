"""Which layers are measured: ends and regimes first, then what makes all prices surest."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from costprof.core.device import DeviceFingerprint
from costprof.costmodel.devices import spec_for
from costprof.costmodel.grouped.choose import choose_layers, group_weights
from costprof.costmodel.grouped.field import Field, FieldScales, Sites
from costprof.costmodel.grouped.fit import fit_grouped
from costprof.costmodel.grouped.model import Measured
from costprof.costmodel.grouped.points import LayerPoints

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
SCALES = FieldScales()
NONE = np.empty(0, dtype=np.int64)


def grid(shapes: tuple[tuple[int, int], ...] = ((1024, 512), (2048, 1024))) -> LayerPoints:
    """Every layer of `shapes` over shards, routings and token counts, in two precisions."""
    rows = [
        {
            "framework": "vllm 0.22.0",
            "kernel": "vllm:fused",
            "precision": precision,
            "hidden": hidden,
            "inner": inner // tp,
            "top_k": 4,
            "experts": 32,
            "ep_size": ep,
            "tp_size": tp,
            "tokens": tokens,
            "distribution": routing,
        }
        for (hidden, inner), precision, (tp, ep), routing, tokens in itertools.product(
            shapes,
            ("bfloat16", "fp8"),
            ((1, 1), (2, 1), (1, 4)),
            ("balanced", "power_law_1.2"),
            TOKENS,
        )
    ]
    return LayerPoints.of_columns({name: [row[name] for row in rows] for name in rows[0]})


def expected_error(points: LayerPoints, measured: np.ndarray) -> float:
    """Mean E|log error| over all points by `Field`, which predicts; `choose` has its own sums."""
    sites, total = Sites.of_points(points), 0.0
    for name in np.unique(points.group):
        at = np.flatnonzero(points.group == name)
        have = at[np.isin(at, measured)]
        variance = np.full(len(at), SCALES.prior_variance()) + SCALES.noise_variance(
            sites.spread[at]
        )
        if len(have):
            field = Field(sites.take(have), np.zeros(len(have)), SCALES)
            variance = field.predict(sites.take(at))[1]
        total += float(np.sqrt(2 / np.pi * variance).sum())
    return total / len(points)


def test_every_group_gets_its_ends_and_every_choice_of_tiles() -> None:
    points = grid()
    chosen = choose_layers(points, NONE, 40, SCALES).chosen
    assert len(set(chosen.tolist())) == 40
    for name in np.unique(points.group):
        all_of = points.group == name
        mine = chosen[all_of[chosen]]
        assert {1.0, 2048.0} <= set(points.tokens[mine].tolist())
        regime = points.tiles.regime
        assert set(regime[mine].tolist()) == set(regime[all_of].tolist())


def test_the_choice_makes_prices_surer_than_any_draw() -> None:
    points = grid()
    choice = choose_layers(points, NONE, 40, SCALES)
    error = expected_error(points, choice.chosen)
    assert choice.expected_error == pytest.approx(error, rel=1e-9)
    draws = [
        expected_error(points, np.random.default_rng(seed).permutation(len(points))[:40])
        for seed in range(20)
    ]
    assert error < 0.98 * min(draws)


def test_it_goes_on_from_what_was_measured() -> None:
    points = grid()
    first = choose_layers(points, NONE, 30, SCALES, seed=1).chosen
    again = choose_layers(points, NONE, 30, SCALES, seed=1).chosen
    assert first.tolist() == again.tolist()
    assert first.tolist() != choose_layers(points, NONE, 30, SCALES, seed=2).chosen.tolist()
    more = choose_layers(points, first, 30, SCALES, seed=1).chosen
    assert set(more.tolist()).isdisjoint(first.tolist())
    rest = choose_layers(points, first, 10**6, SCALES).chosen
    assert sorted([*first.tolist(), *rest.tolist()]) == list(range(len(points)))
    assert len(choose_layers(points, np.arange(len(points)), 5, SCALES).chosen) == 0


def test_dear_layers_are_measured_less_and_groups_of_large_errors_more() -> None:
    points = grid()
    plain = choose_layers(points, NONE, 60, SCALES).chosen
    cost = np.where(points.tokens > 100, 50.0, 1.0)
    cheap = choose_layers(points, NONE, 60, SCALES, cost=cost).chosen
    assert cost[cheap].sum() < 0.7 * cost[plain].sum()
    heavy = str(points.group[0])
    weighed = choose_layers(points, NONE, 60, SCALES, weights={heavy: 3.0}).chosen
    assert (points.group[weighed] == heavy).sum() > 1.3 * (points.group[plain] == heavy).sum()


def test_a_group_of_large_errors_is_found() -> None:
    points = grid()
    rng = np.random.default_rng(0)
    rough = points.group == points.group[0]
    log_us = np.log(20.0 + 0.1 * points.tokens) + np.where(rough, 0.25, 0.01) * rng.normal(
        size=len(points)
    )
    measured = Measured(points, np.exp(log_us), np.full(len(points), np.nan))
    spec = spec_for(DeviceFingerprint(kind="gpu", name="NVIDIA H200"))
    weights = group_weights(fit_grouped(measured, spec).model, measured)
    assert set(weights) == set(points.group.tolist())
    assert weights[str(points.group[0])] == max(weights.values())
    assert weights[str(points.group[0])] > 1.5 * np.median(list(weights.values()))
