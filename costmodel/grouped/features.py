"""What the learned part of the model sees of a layer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from costprof.costmodel.grouped.points import LayerPoints
from costprof.costmodel.grouped.stage_time import StageTimes
from costprof.costmodel.grouped.token_counts import TILE_ROWS
from costprof.costmodel.grouped.work import LayerWork

Array = npt.NDArray[np.float64]

_PRECISIONS = ("bfloat16", "fp8", "fp8_block", "int8", "int4", "mxfp4", "float16", "float32")
_DISTRIBUTIONS = ("balanced", "power_law_1.01", "power_law_1.2")
_UNITS = 132.0  # programs that run at once; only turns counts of tiles into rough waves
_FEW_WAVES = 40.0  # beyond so many the last, unfilled one no longer shows

TIME_FEATURES = (
    "log2_tokens",
    "log2_active_experts",
    "log2_assignments",
    "log2_busiest_expert",
    "log2_tokens_an_active_expert",
    *(f"log2_padding_to_{rows}" for rows in TILE_ROWS),
    "log2_tiles_of_64",
    "log2_hidden",
    "log2_inner",
    "log2_experts",
    "top_k",
    "log2_local_experts",
    "log2_ep_size",
    "log2_tp_size",
    "inner_divisor",
    "gate_up_divisor",
    "precision",
    "distribution",
    "tile_rows",
    "tile_columns",
    "tile_depth",
    "stages",
    "log2_analytic_us",
    "log2_waves_up",
    "log2_waves_down",
    "last_wave_up",
    "last_wave_down",
    "log2_flops_a_byte",
    "log2_padding",
    "log2_programs_a_tile",
    "share_up",
    "share_down",
    "share_elementwise",
    "share_reduce",
    "share_scheduling",
)

POWER_FEATURES = (
    *TIME_FEATURES,
    "log2_latency_us",
    "log2_flops_a_us",
    "log2_weight_bytes_a_us",
    "log2_cache_bytes_a_us",
    "log2_elementwise_bytes_a_us",
)


def time_features(points: LayerPoints, work: LayerWork, times: StageTimes) -> Array:
    """Return [n, len(TIME_FEATURES)]."""
    load, tiles, total = points.load, points.tiles, times.total_us
    waves_up, waves_down = work.up.tiles / _UNITS, work.down.tiles / _UNITS
    each = {
        "log2_tokens": np.log2(points.tokens),
        "log2_active_experts": np.log2(load.active + 0.5),
        "log2_assignments": np.log2(load.assignments + 0.5),
        "log2_busiest_expert": np.log2(load.busiest + 0.5),
        "log2_tokens_an_active_expert": np.log2((load.assignments + 0.5) / (load.active + 0.5)),
        **{
            f"log2_padding_to_{rows}": np.log2(
                (load.tiles[:, at] * rows + 1.0) / (load.assignments + 1.0)
            )
            for at, rows in enumerate(TILE_ROWS)
        },
        "log2_tiles_of_64": np.log2(load.tiles[:, TILE_ROWS.index(64)] + 0.5),
        "log2_hidden": np.log2(points.hidden),
        "log2_inner": np.log2(points.inner),
        "log2_experts": np.log2(points.experts),
        "top_k": points.top_k,
        "log2_local_experts": np.log2(points.experts / points.ep_size),
        "log2_ep_size": np.log2(points.ep_size),
        "log2_tp_size": np.log2(points.tp_size),
        "inner_divisor": _divisor(points.inner, 256),
        "gate_up_divisor": _divisor(2.0 * points.inner, 512),
        "precision": _codes(points.precision, _PRECISIONS),
        "distribution": _codes(points.distribution, _DISTRIBUTIONS),
        "tile_rows": tiles.rows,
        "tile_columns": tiles.columns,
        "tile_depth": tiles.depth,
        "stages": tiles.stages,
        "log2_analytic_us": np.log2(total),
        "log2_waves_up": np.log2(waves_up + 1e-3),
        "log2_waves_down": np.log2(waves_down + 1e-3),
        "last_wave_up": _last_wave(waves_up),
        "last_wave_down": _last_wave(waves_down),
        "log2_flops_a_byte": np.log2(
            (work.up.flops + 1.0) / (work.up.weight_bytes + work.up.row_bytes + 1.0)
        ),
        "log2_padding": np.log2(
            (load.tiles[np.arange(len(points)), np.searchsorted(TILE_ROWS, tiles.rows)])
            * tiles.rows
            / (load.assignments + 0.5)
            + 1e-3
        ),
        "log2_programs_a_tile": np.log2(work.grid / (work.up.tiles + work.down.tiles + 1e-3)),
        "share_up": times.up_us / total,
        "share_down": times.down_us / total,
        "share_elementwise": times.elementwise_us / total,
        "share_reduce": times.reduce_us / total,
        "share_scheduling": times.scheduling_us / total,
    }
    return np.stack([each[name] for name in TIME_FEATURES], axis=1)


def power_features(time: Array, work: LayerWork, latency_us: Array) -> Array:
    """Return [n, len(POWER_FEATURES)] from the time features and the predicted latency."""
    moved = work.elementwise_bytes + work.reduce_bytes + work.zero_bytes
    rates = (work.flops, work.weight_bytes, work.up.tile_bytes + work.down.tile_bytes, moved)
    columns = [np.log2(latency_us), *(np.log2(rate / latency_us + 1.0) for rate in rates)]
    return np.concatenate([time, np.stack(columns, axis=1)], axis=1)


def _divisor(sizes: Array, limit: int) -> Array:
    """The largest power of two, up to `limit`, that divides each size: alignment."""
    return np.gcd(sizes.astype(np.int64), limit).astype(np.float64)


def _last_wave(waves: Array) -> Array:
    """Time of whole waves over that of the part needed; 1 where there are many."""
    waves = np.maximum(waves, 1e-3)
    return np.where(waves < _FEW_WAVES, np.ceil(waves) / waves, 1.0).clip(max=64.0)


def _codes(names: npt.NDArray[np.str_], known: tuple[str, ...]) -> Array:
    order = {name: float(at) for at, name in enumerate(known)}
    return np.array([order.get(name, -1.0) for name in names.tolist()])
