"""A tiny sweep spec that every test of the profiler starts from."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from costprof.profiler.spec import SweepSpec, parse_spec

TINY: dict[str, Any] = {
    "name": "tiny",
    "device": "cpu",
    "experts": {
        "f32": {"d_model": 64, "d_ff": 64, "dtype": "float32"},
        "int4": {"d_model": 64, "d_ff": 64, "dtype": "float32", "quantisation": "int4"},
    },
    "measure": [
        {"expert": "f32", "tokens": [1, 2, 4]},
        {"expert": "int4", "tokens": [1, 2]},
    ],
    "moe": [
        {
            "name": "tiny",
            "top_k": 2,
            "experts": [{"expert": "f32", "count": 3}, {"expert": "int4", "count": 1}],
        }
    ],
    "timing": {
        "target_ms": 5,
        "max_repetitions": 50,
        "remeasure": 0,
        "threads": 1,
        # What is timed here does not matter: the gate has tests of its own.
        "max_robust_cv": 100,
        "max_pass_disagreement": 100,
    },
}


@pytest.fixture
def tiny_values() -> dict[str, Any]:
    return copy.deepcopy(TINY)


@pytest.fixture
def tiny_spec() -> SweepSpec:
    return parse_spec(TINY, source="tiny")
