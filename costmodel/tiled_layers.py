"""Layers measured under several tile configs: which were best, and which count."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Hashable, Mapping
from typing import Any

from costprof.costmodel.manifest import TiledLayer
from costprof.costmodel.measurements import expert_of

KEPT = 8
"""Configs a table keeps of each layer and token count: a reader may have no use for the first."""


def fastest_configs(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return `layers` (measurement rows) less those that another config of the same layer beats."""
    best: dict[Hashable, dict[str, Any]] = {}
    for row in layers:
        key = (*_layer(row), tuple(row["counts"]))
        if key not in best or _rank(row) < _rank(best[key]):
            best[key] = row
    kept = {id(row) for row in best.values()}
    return [row for row in layers if id(row) in kept]


def tiled_layers(layers: list[dict[str, Any]]) -> tuple[TiledLayer, ...]:
    """Return what `layers` (usable measurement rows) say of tile configs, in a fixed order.

    Of a config measured twice the faster row counts.
    """
    grouped: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in layers:
        if not json.loads(row["config"]):
            continue
        configs = grouped.setdefault((*_layer(row), row["distribution"], row["tokens"]), {})
        known = configs.get(row["config"])
        if known is None or _rank(row) < _rank(known):
            configs[row["config"]] = row
    made = []
    for _, configs in sorted(grouped.items(), key=lambda item: (str(item[0][:-1]), item[0][-1])):
        rows = sorted(configs.values(), key=_rank)
        first = rows[0]
        made.append(
            TiledLayer(
                class_fields=dataclasses.asdict(expert_of(first)),
                kernel=first["kernel"],
                cache_state=first["cache_state"],
                experts=first["experts"],
                top_k=first["top_k"],
                distribution=first["distribution"],
                tokens=first["tokens"],
                configs=tuple(
                    (json.loads(row["config"]), float(row["latency_us_p50"])) for row in rows[:KEPT]
                ),
                tried=len(rows),
            )
        )
    return tuple(made)


def _layer(row: Mapping[str, Any]) -> tuple[Any, ...]:
    shape = (row.get("experts"), row.get("top_k"), row.get("ep_size"), row.get("tp_size"))
    return (row["class_id"], *shape)


def _rank(row: Mapping[str, Any]) -> tuple[float, str]:
    return float(row["latency_us_p50"]), row["config"]
