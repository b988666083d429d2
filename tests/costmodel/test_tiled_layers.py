"""Layers measured under several tile configs: what a table keeps, and what composes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from costprof.core.expert import ExpertClass
from costprof.costmodel.fit import fit_dataset
from costprof.costmodel.manifest import Manifest
from costprof.costmodel.tiled_layers import KEPT, fastest_configs, tiled_layers

EXPERT = ExpertClass(d_model=256, d_ff=512, dtype="float32")


def layer_rows(world: Any, factors: dict[int, float]) -> list[dict[str, Any]]:
    """Layers at three batches, under configs that are slower than the best by `factors`."""
    rows = []
    for tokens in (4, 8, 16):
        for block, factor in factors.items():
            row = world.row(EXPERT, tokens, op="layer", counts=(tokens, tokens, tokens // 2, 0))
            for name in ("latency_us_p05", "latency_us_p50", "latency_us_p95"):
                row[name] *= factor
            row |= {
                "config": json.dumps({"BLOCK_M": block}),
                "experts": 4,
                "top_k": 2,
                "distribution": "balanced",
            }
            rows.append(row)
    return rows


def test_slow_configs_do_not_enter_the_composition(
    world: Callable[..., Any], dataset: Callable[..., Path]
) -> None:
    here = world()
    experts = [here.row(EXPERT, tokens) for tokens in (1, 2, 4, 8, 16, 32)]
    rows = layer_rows(here, {16: 1.0, 32: 3.0, 64: 1.5})
    fitted = fit_dataset(dataset(experts + rows))
    (composition,) = fitted.manifest.compositions.values()
    assert composition.layers == 3
    assert composition.base_us == pytest.approx(here.layer_base_us, rel=0.05)
    assert composition.latency_scale == pytest.approx(here.layer_scale, rel=0.05)
    layers = fitted.manifest.tiled_layers
    assert [layer.tokens for layer in layers] == [4, 8, 16]
    for layer in layers:
        assert [config["BLOCK_M"] for config, _ in layer.configs] == [16, 64, 32]
        assert layer.tried == 3


def test_the_manifest_carries_them(
    world: Callable[..., Any], make_manifest: Callable[..., Manifest]
) -> None:
    plain = make_manifest()
    found = tiled_layers(layer_rows(world(), {16: 1.0, 32: 2.0}))
    tiled = dataclasses.replace(plain, tiled_layers=found)
    assert Manifest.from_dict(json.loads(tiled.to_json())) == tiled


def test_the_best_are_kept_and_configs_of_other_layers_apart(world: Callable[..., Any]) -> None:
    many = {2**n: 1.0 + n for n in range(KEPT + 3)}
    rows = layer_rows(world(), many)
    other = [{**row, "top_k": 1} for row in rows]
    found = tiled_layers(rows + other)
    assert len(found) == 6
    assert all(len(layer.configs) == KEPT and layer.tried == KEPT + 3 for layer in found)
    assert len(fastest_configs(rows + other)) == 6
    assert tiled_layers([{**row, "config": "{}"} for row in rows]) == ()
