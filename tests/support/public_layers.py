"""Public measurements of MoE layers as nobody published them: of a device with known constants."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from costprof.costmodel.grouped.points import LayerPoints
from costprof.costmodel.grouped.power import PowerConstants, layer_power_w
from costprof.costmodel.grouped.stage_time import StageConstants, stage_times
from costprof.costmodel.grouped.work import layer_work

LIMIT_W = 700.0
CONSTANTS = StageConstants(
    launch_us=22.0,
    flops_per_s=6e14,
    weight_bytes_per_s=3.9e12,
    row_bytes_per_s=6e12,
    cache_bytes_per_s=1.1e13,
    step_us=0.25,
    elementwise_bytes_per_s=2.5e12,
    reduce_bytes_per_s=2.2e12,
    zero_bytes_per_s=4e12,
    program_us=1e-3,
    copy_us=1e-4,
    expert_us=2e-3,
    corner=1.5,
)
POWERS = PowerConstants(150.0, 0.35, 45.0, 6.0)
# hidden, inner, top-k, experts
SHAPES = ((2048, 768, 8, 64), (1024, 512, 4, 32), (4096, 1536, 2, 16), (2048, 1024, 8, 128))
SHARDS = ((1, 1), (2, 1), (4, 1), (1, 2), (1, 8))  # tp, ep
TOKENS = (1, 4, 16, 64, 128, 256, 1024, 4096)
NOISE = 0.01


def public_table(shapes: tuple[tuple[int, int, int, int], ...] = SHAPES) -> pa.Table:
    """Return layers of `shapes` in the public columns, 1 % of noise on time and power."""
    keys = [
        (h, i, k, e, tp, ep, tokens, routing, precision)
        for h, i, k, e in shapes
        for tp, ep in SHARDS
        for tokens in TOKENS
        for routing in ("balanced", "power_law_1.2")
        for precision in ("bfloat16", "fp8")
    ]
    columns: dict[str, Any] = {
        "framework": ["VLLM"] * len(keys),
        "version": ["0.99.0"] * len(keys),
        "device": ["NVIDIA H200"] * len(keys),
        "op_name": ["moe"] * len(keys),
        "kernel_source": ["fused"] * len(keys),
        "moe_dtype": [key[8] for key in keys],
        "num_tokens": [key[6] for key in keys],
        "hidden_size": [key[0] for key in keys],
        "inter_size": [key[1] for key in keys],
        "topk": [key[2] for key in keys],
        "num_experts": [key[3] for key in keys],
        "moe_tp_size": [key[4] for key in keys],
        "moe_ep_size": [key[5] for key in keys],
        "distribution": [key[7] for key in keys],
    }
    points = LayerPoints.of_columns(
        {
            "framework": ["vllm 0.99.0"] * len(keys),
            "kernel": ["vllm:fused"] * len(keys),
            "precision": columns["moe_dtype"],
            "hidden": columns["hidden_size"],
            "inner": np.array(columns["inter_size"]) / np.array(columns["moe_tp_size"]),
            "top_k": columns["topk"],
            "experts": columns["num_experts"],
            "ep_size": columns["moe_ep_size"],
            "tp_size": columns["moe_tp_size"],
            "tokens": columns["num_tokens"],
            "distribution": columns["distribution"],
        }
    )
    work, rng = layer_work(points), np.random.default_rng(7)
    latency_us = stage_times(work, CONSTANTS).total_us
    # What no formula of ours knows: odd shards are slow, and each shape is off by its own factor.
    latency_us *= np.where(points.inner % 128, 1.3, 1.0) * (
        1.0 + 0.08 * np.sin(points.inner * points.tp_size + points.experts)
    )
    power_w = layer_power_w(work, latency_us, POWERS, LIMIT_W)
    latency_us *= np.exp(NOISE * rng.standard_normal(len(keys)))
    power_w = np.minimum(power_w * np.exp(NOISE * rng.standard_normal(len(keys))), LIMIT_W)
    columns["latency"] = latency_us * 1e-3
    columns["power"] = power_w
    columns["power_limit"] = [LIMIT_W] * len(keys)
    return pa.table(columns)


def write_public(path: Path, table: pa.Table | None = None) -> Path:
    """Write `table` (None: all layers) as a Parquet file and return its path."""
    pq.write_table(public_table() if table is None else table, path)
    return path


@dataclass(frozen=True)
class Fitted:
    """Where things lie: the source, the dataset without its last shape, and the table of it."""

    source: Path
    held_out: Path
    dataset: Path
    table: Path
