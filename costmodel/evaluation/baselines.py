"""What a prediction must beat: rules that need no model, given the same measurements."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingRegressor

from costprof.costmodel.devices import DeviceSpec
from costprof.costmodel.grouped.model import Measured
from costprof.costmodel.grouped.points import LayerPoints
from costprof.costmodel.grouped.work import LayerWork
from costprof.costmodel.predict import straight_us

Array = npt.NDArray[np.float64]

EIGHT_BITS = ("fp8", "fp8_block")


def linear_in_tokens(train: LayerPoints, values: Array, wanted: LayerPoints) -> Array:
    """Return `values` [n] of the same curve, straight in tokens, at `wanted` [m].

    aiconfigurator's rule between its points. NaN where a curve has fewer than two.
    """
    result = np.full(len(wanted), np.nan)
    order = np.lexsort((train.tokens, train.curve))
    curves, first, count = np.unique(train.curve[order], return_index=True, return_counts=True)
    for name, start, size in zip(curves, first, count, strict=True):
        at = np.flatnonzero(wanted.curve == name)
        if size >= 2 and len(at):
            known = order[start : start + size]
            result[at] = straight_us(train.tokens[known], values[known], wanted.tokens[at])
    return result


def roofline_us(points: LayerPoints, work: LayerWork, spec: DeviceSpec) -> Array:
    """Return launch + max(compute, memory) of the compulsory work at the datasheet's ceilings."""
    peak = spec.peak_flops.get("bfloat16", max(spec.peak_flops.values()))
    peaks = np.where(np.isin(points.precision, EIGHT_BITS), 2.0 * peak, peak)
    memory = (work.weight_bytes + work.up.row_bytes + work.down.row_bytes) / spec.memory_bytes_per_s
    return np.asarray(spec.launch_us + 1e6 * np.maximum(work.useful_flops / peaks, memory))


def boosted(
    train: Measured, train_roofline_us: Array, wanted: LayerPoints, wanted_roofline_us: Array
) -> Array:
    """Return the roofline times a boosted ratio, from shapes and shards alone: the usual recipe."""
    model = HistGradientBoostingRegressor(
        max_iter=400, learning_rate=0.06, max_leaf_nodes=31, early_stopping=False, random_state=0
    )
    model.fit(_columns(train.points), np.log(train.latency_us / train_roofline_us))
    return np.asarray(wanted_roofline_us * np.exp(model.predict(_columns(wanted))))


def _columns(points: LayerPoints) -> Array:
    sizes = (points.tokens, points.hidden, points.inner, points.experts, points.top_k)
    shard = (points.ep_size, points.tp_size)
    names = sorted({*points.precision.tolist(), "bfloat16", "fp8", "fp8_block", "int4", "mxfp4"})
    codes = np.array([names.index(name) for name in points.precision.tolist()], dtype=np.float64)
    balanced = (points.distribution == "balanced").astype(np.float64)
    active = points.load.active
    columns = [*(np.log2(size) for size in (*sizes, *shard)), np.log2(active + 0.5)]
    return np.stack([*columns, codes, balanced], axis=1)
