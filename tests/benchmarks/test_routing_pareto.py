"""Curves of cost against quality, and what is said of them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_steps.page import page
from routing_steps.pareto import at_bits, choose, corners, hull, over_ours, verdict
from routing_steps.picture import picture

POINTS = st.lists(st.tuples(st.floats(1.0, 2.0), st.floats(0.1, 1.0)), min_size=1, max_size=12)
BATCH = 4


@given(points=POINTS)
def test_no_point_lies_below_the_hull_and_its_corners_are_points(
    points: list[tuple[float, float]],
) -> None:
    bits, cost = (np.array(column) for column in zip(*points, strict=True))
    found = hull(bits.tolist(), cost.tolist())
    assert (np.diff(bits[found]) > 0).all()
    assert (np.diff(cost[found]) < 0).all()
    assert bits[found[0]] == bits.min()
    assert cost[found[-1]] == cost.min()
    assert (at_bits(bits, cost, bits) <= cost + 1e-12).all()


def figures(bits: float, cost: float, noise: np.random.Generator) -> dict[str, list[float]]:
    """Figures of 40 batches."""
    shared = 1.0 + 0.1 * np.random.default_rng(1).standard_normal(40)  # of the text, for all alike
    own = 1.0 + 0.001 * noise.standard_normal(40)
    costs = {key: (cost * own).tolist() for key in ("weight_bytes", "predicted_us", "predicted_mj")}
    return {"bits_per_byte": np.repeat(bits * shared, BATCH).tolist(), **costs}


@pytest.fixture
def judged() -> dict[str, dict[str, list[float]]]:
    """Plain top-k, two settings of ours and three rivals: below, on and above our curve."""
    noise = np.random.default_rng(0)
    return {
        "topk": figures(1.0, 1.0, noise),
        "marginal lam=1": figures(1.01, 0.6, noise),
        "marginal lam=2": figures(1.03, 0.4, noise),
        "lynx below": figures(1.02, 0.45, noise),
        "oea on": figures(1.02, 0.5, noise),
        "budget above": figures(1.005, 0.9, noise),
    }


def test_a_rival_is_cheaper_undecided_or_dominated_at_equal_bits(
    judged: dict[str, dict[str, list[float]]],
) -> None:
    found = over_ours(judged, BATCH)
    assert found.keys() == {"lynx below", "oea on", "budget above"}
    assert found["lynx below"]["weight_bytes"][1] == pytest.approx(0.9, abs=1e-3)
    assert found["budget above"]["predicted_us"][1] == pytest.approx(0.9 / 0.8, abs=1e-3)
    verdicts = [verdict(each["weight_bytes"]) for each in found.values()]
    assert verdicts == ["cheaper", "undecided", "dominated"]


def test_a_rival_of_fewer_bits_than_all_of_ours_is_not_called_dominated(
    judged: dict[str, dict[str, list[float]]],
) -> None:
    judged["skip left"] = figures(0.99, 1.05, np.random.default_rng(2))
    assert verdict(over_ours(judged, BATCH)["skip left"]["weight_bytes"]) == "undecided"
    judged["skip left"] = figures(0.99, 0.95, np.random.default_rng(2))
    assert verdict(over_ours(judged, BATCH)["skip left"]["weight_bytes"]) == "cheaper"


def test_the_setting_chosen_is_the_cheapest_within_the_quality() -> None:
    tried = {
        "topk": {"bits_per_byte": 1.0, "weight_bytes": 1.0},
        "marginal a": {"bits_per_byte": 1.005, "weight_bytes": 0.8},
        "marginal b": {"bits_per_byte": 1.009, "weight_bytes": 0.7},
        "marginal c": {"bits_per_byte": 1.05, "weight_bytes": 0.3},
        "fewer k=1": {"bits_per_byte": 1.2, "weight_bytes": 0.2},
        "fewer k=2": {"bits_per_byte": 1.1, "weight_bytes": 0.5},
    }
    assert choose(tried, 0.01) == {
        "topk": "topk",
        "marginal": "marginal b",
        "fewer": "fewer k=2",
    }
    # Ours may lose 6 %, others 3 %: no setting of `fewer` is left.
    assert corners(tried) == ["topk", "marginal a", "marginal b", "marginal c"]


def test_the_page_and_the_picture_show_every_policy(
    judged: dict[str, dict[str, list[float]]],
) -> None:
    found: dict[str, Any] = {
        "draws": 1,
        "sequences": 160,
        "test": {n: {k: float(np.mean(v)) for k, v in each.items()} for n, each in judged.items()},
        "over_marginal": over_ours(judged, BATCH),
    }
    report = {"model": "m", "table": "t", "batches": {"16": found, "4": found}}
    drawn = ET.fromstring(picture(report, [4, 16]))
    texts = [each.text for each in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"batch 4", "batch 16", "marginal", "lynx", "oea", "budget"} <= set(texts)
    html = page(report)
    assert html.index("Batch 4") < html.index("Batch 16")
    assert "lynx below" in html
    assert "cheaper" in html
