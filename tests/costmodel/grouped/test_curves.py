"""What near neighbours of a curve say of the counts between them."""

from __future__ import annotations

import numpy as np
from numpy.testing import assert_allclose

from costprof.costmodel.grouped.curves import between_counts
from costprof.costmodel.grouped.points import LayerPoints


def points(tokens: list[int], tp: list[int]) -> LayerPoints:
    same = {"hidden": 512, "inner": 256, "top_k": 2, "experts": 8, "ep_size": 1}
    texts = {
        "framework": "f",
        "kernel": "k",
        "precision": "bfloat16",
        "distribution": "balanced",
    }
    return LayerPoints.of_columns(
        {name: [value] * len(tokens) for name, value in {**same, **texts}.items()}
        | {"tokens": tokens, "tp_size": tp}
    )


def test_between_near_neighbours_it_is_straight_and_elsewhere_unknown() -> None:
    known = points([4, 8, 64, 1, 2], [1, 1, 1, 2, 2])
    values = np.array([10.0, 30.0, 90.0, 5.0, 7.0])
    wanted = points([6, 16, 2, 100, 8, 1, 3], [1, 1, 1, 1, 1, 2, 4])
    found = between_counts(known, values, wanted)
    # 16 lies between neighbours three octaves apart, 2 and 100 outside; 3 is of another curve.
    assert_allclose(found, [20.0, np.nan, np.nan, np.nan, 30.0, 5.0, np.nan])
