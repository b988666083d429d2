"""Axes, bins, fronts and drivers by themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costprof.costmodel.report.axes import linear_axis, log_axis, short, token_axis
from costprof.costmodel.report.binning import bin_centres, binned, count_bins
from costprof.costmodel.report.chart import Dots, Line, chart
from costprof.costmodel.report.drivers import LEAST_CALLS, drivers
from costprof.costmodel.report.heat import heat_map
from costprof.costmodel.report.joules import pareto_front
from costprof.costmodel.report.series import series_order


@given(st.lists(st.floats(1e-6, 1e15), min_size=1, max_size=20))
def test_a_log_axis_holds_its_values_in_order_with_few_marks(values: list[float]) -> None:
    for axis in (log_axis("x", np.array(values)), token_axis(np.array(values))):
        share = axis.share(np.sort(values))
        assert (np.diff(share) >= 0).all()
        assert share[0] > 0.0
        assert share[-1] < 1.0
        assert len(axis.ticks) <= 8
        assert all(axis.low <= value <= axis.high for value, _ in axis.ticks)


def test_marks_are_round_numbers() -> None:
    assert [name for _, name in token_axis(np.array([1.0, 64.0])).ticks] == [
        *("1", "2", "4", "8", "16", "32", "64")
    ]
    ticks = [name for _, name in token_axis(np.array([1.0, 16384.0])).ticks]
    assert ticks == ["1", "4", "16", "64", "256", "1024", "4096", "16.4k"]
    assert [name for _, name in log_axis("x", np.array([1e9, 1e14])).ticks] == [
        *("1G", "10G", "100G", "1T", "10T", "100T")
    ]
    assert [value for value, _ in linear_axis("x", 40.0, 100.0, 20.0).ticks] == [40, 60, 80, 100]
    assert [short(v) for v in (0.0, -0.25, 999.9, 1e3, 12345.0)] == [
        *("0", "-0.25", "1k", "1k", "12.3k")
    ]


def test_an_axis_without_values_still_is_one() -> None:
    axis = log_axis("x", np.array([np.nan, -1.0, 0.0]))
    assert axis.low < axis.high


def test_unknown_points_are_not_drawn_and_far_ones_stay_at_the_edge() -> None:
    x, y = linear_axis("x", 0.0, 1.0, 0.5), linear_axis("y & z", 0.0, 1.0, 0.5)
    dots = Dots(np.array([0.5, np.nan, 9.0]), np.array([0.5, 0.5, -9.0]), "s0")
    svg = chart(x, y, [dots, Line(np.array([np.nan]), np.array([1.0]), "s1")], "a < b")
    assert svg.count("h0") == 2
    assert "M428.0 254.0h0" in svg
    assert "<title>a &lt; b</title>" in svg
    assert "y &amp; z" in svg
    assert "nan" not in svg


def test_a_heat_map_leaves_unknown_cells_out() -> None:
    values = np.array([[1.0, 10.0], [np.nan, 100.0]])
    svg = heat_map(values, ["1", "2"], ["a", "b"], "tokens", "cost", "µs")
    assert svg.count("<rect") == 3
    assert 'fill-opacity="0.08"' in svg
    assert 'fill-opacity="1.00"' in svg
    assert "<title>b, 2 tokens: 100 µs</title>" in svg
    assert ">tokens</text>" in svg
    ranges = heat_map(values, ["1", "2–3"], ["a", "b"], "tokens", "cost", "µs")
    assert ">2</text>" in ranges
    assert ">tokens, from</text>" in ranges
    assert "<title>b, 2–3 tokens: 100 µs</title>" in ranges


def test_counts_are_bins_of_their_own_until_they_are_many() -> None:
    names, at = count_bins(np.array([4.0, 1.0, 4.0, 96.0]))
    assert (names, at.tolist()) == (["1", "4", "96"], [1, 0, 1, 2])
    names, at = count_bins(np.array([1.0, 2.0, 3.0, 4.0, 7.0, 8.0]), most=3)
    assert (names, at.tolist()) == (["1", "2–3", "4–7", "8–15"], [0, 1, 1, 2, 2, 3])
    assert bin_centres(np.array([1.0, 2.0, 8.0]), np.array([0, 1, 1]), 2) == pytest.approx([1, 4])
    found = binned(np.array([1.0, np.nan, 3.0]), np.array([0, 1, 2]), 4, lambda v: float(v.sum()))
    assert np.isnan(found).tolist() == [False, True, False, True]


def test_series_beyond_the_most_are_one() -> None:
    series = np.array(["a"] * 3 + ["b"] * 2 + ["c", "d"])
    names, own = series_order(series, 3)
    assert names == ["a", "b", "other"]
    assert own.tolist() == ["a"] * 3 + ["b"] * 2 + ["other"] * 2


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=30))
def test_nothing_beats_the_front_and_the_front_beats_the_rest(
    points: list[tuple[int, int]],
) -> None:
    first, second = np.array(points, dtype=float).T
    front = {points[i] for i in pareto_front(first, second).tolist()}
    undominated = {
        p for p in points if not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)
    }
    assert front == undominated


def test_drivers_find_what_the_cost_was_made_of() -> None:
    rng = np.random.default_rng(0)
    n = 600
    tokens, width, noise = rng.uniform(1, 8, n), rng.uniform(1, 8, n), rng.uniform(1, 8, n)
    group = np.array([f"g{i % 6}" for i in range(n)])
    features = {"noise": noise, "tokens": tokens, "width": width, "always": np.ones(n)}
    found = drivers(features, tokens**2 * width**-0.5, group)
    assert found is not None
    assert [d.name for d in found.drivers] == ["tokens", "width", "noise"]
    by_name = {d.name: d for d in found.drivers}
    assert by_name["tokens"].spearman > 0.9
    assert by_name["width"].spearman < -0.1
    assert by_name["tokens"].importance > 50
    assert abs(by_name["noise"].importance) < 3
    assert (found.calls, found.groups) == (n, 6)
    assert found.r2 > 0.95


def test_drivers_are_judged_on_groups_they_have_not_seen() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat([f"g{i}" for i in range(8)], 40)
    # Within a group the cost is one number, and the feature tells only which group it is.
    offset = np.repeat(np.exp(rng.normal(size=8)), 40)
    found = drivers({"which": np.repeat(rng.permutation(8).astype(float), 40)}, offset, group)
    assert found is not None
    assert found.r2 < 0.3


def test_too_few_calls_or_groups_have_no_drivers() -> None:
    n = LEAST_CALLS - 1
    x = {"x": np.arange(float(n))}
    assert drivers(x, np.arange(1.0, n + 1), np.array([f"{i % 3}" for i in range(n)])) is None
    x = {"x": np.arange(100.0)}
    assert drivers(x, np.arange(1.0, 101.0), np.full(100, "one")) is None
    half = np.where(np.arange(100) % 2 == 0, np.nan, 1.0 + np.arange(100.0))
    two = np.array([f"{i // 50}" for i in range(100)])
    assert (found := drivers(x, half, two)) is not None
    assert found.calls == 50
    assert drivers(x, np.full(100, 14.0), two) is None
