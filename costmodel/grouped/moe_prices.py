"""An MoE that nobody measured as rows of a cost table: experts that add up, and how they add up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from costprof.core.errors import InputError
from costprof.core.expert import CacheState, Kernel
from costprof.costmodel.devices import DeviceSpec
from costprof.costmodel.energy import heat_c_per_mj
from costprof.costmodel.grouped.additive import (
    AdditivePrice,
    Batch,
    example_batches,
    fit_additive,
    knots_for,
)
from costprof.costmodel.grouped.model import WHOLE, GroupedModel, Measured
from costprof.costmodel.grouped.points import LayerPoints
from costprof.costmodel.grouped.token_counts import load_of_counts
from costprof.costmodel.grouped.transfer import TransferModel
from costprof.costmodel.manifest import Composition, MoeSpec
from costprof.costmodel.rows import TableRow
from costprof.profiler.stored_moe import StoredMoe

Array = npt.NDArray[np.float64]

_CACHE_STATE: CacheState = (
    "warm"  # as in the rows the model was fitted to: nothing was flushed between calls
)


@dataclass(frozen=True, slots=True)
class MoePrices:
    """Rows of one class, how they compose, and how far the sum is from the model it was fitted to.

    `figures` are plain JSON values.
    """

    rows: tuple[TableRow, ...]
    composition: Composition
    spec: MoeSpec
    figures: Mapping[str, Any]


def price_moe(
    moe: StoredMoe,
    model: GroupedModel | TransferModel,
    measured: Measured | None,
    spec: DeviceSpec,
    *,
    kernel: str | None = None,
) -> MoePrices:
    """Price the experts of `moe`, all on one device of `spec`, under the best method known.

    Of the kernels the model knows for the precision, those whose power was measured come first,
    then the one of least predicted time over all batches. `kernel`: this one (with or without
    `vllm:`).

    Raises:
        InputError: the model knows no such kernel in this precision, or no power at all.
    """
    batches = example_batches(moe.experts, moe.top_k)
    transferred = isinstance(model, TransferModel)
    known = model.source.model if isinstance(model, TransferModel) else model
    offers = {
        method: _points(moe, method, batches)
        for method in _methods(known, moe.precision, kernel, moe.name)
    }
    priced = {
        method: model.predict(points)
        if isinstance(model, TransferModel)
        else model.predict(points, measured)
        for method, points in offers.items()
    }
    powers = known.parts[WHOLE].powers
    best = min(
        priced,
        key=lambda each: (
            "|".join(each) not in powers,
            float(np.log(priced[each].latency_us[1]).sum()),
            each,
        ),
    )
    prediction = priced[best]
    latency_us, power_w = prediction.latency_us[1], prediction.power_w
    if not np.isfinite(power_w).all():
        raise InputError(
            "the model was fitted to layers without power",
            f"{moe.name} has no energy and cannot be priced",
            "fit a dataset in which some layers have power",
        )
    active_mj = np.maximum(power_w - spec.idle_w, 1.0) * latency_us * 1e-3
    knots = knots_for(batches)
    times = fit_additive(batches, latency_us, knots)
    energies = fit_additive(batches, active_mj, knots)
    time_off = _off(times, batches, latency_us)
    energy_off = _off(energies, batches, active_mj)
    balanced = np.array([batch.tokens * moe.top_k / moe.experts for batch in batches])
    named = Kernel(name=best[1], framework=best[0])
    rows = tuple(
        TableRow(
            expert=moe.expert,
            kernel=named,
            tokens=int(tokens),
            latency_us=_spread(latency, time_band),
            energy_mj=_spread(energy, energy_band),
            cache_state=_CACHE_STATE,
            power_w=min(spec.idle_w + energy / latency * 1e3, spec.power_limit_w),
            temp_rise_c=heat_c_per_mj(spec) * energy,
            tier="transferred" if transferred else "predicted",
            energy_source="modelled",
        )
        for tokens, latency, energy, time_band, energy_band in zip(
            knots,
            _positive(times.values),
            _positive(energies.values),
            _bands(prediction.latency_us, balanced, knots, time_off),
            _bands(prediction.energy_mj, balanced, knots, energy_off),
            strict=True,
        )
    )
    figures = {
        "framework": best[0],
        "kernel": best[1],
        "batches": len(batches),
        "latency_off_percent": _figures(time_off),
        "energy_off_percent": _figures(energy_off),
    }
    composition = Composition(
        base_us=times.base, base_mj=energies.base, fitted=True, kernel=best[1]
    )
    members = (rows[0].class_id,) * moe.experts
    return MoePrices(
        rows, composition, MoeSpec(name=moe.name, top_k=moe.top_k, class_of_expert=members), figures
    )


def _methods(
    model: GroupedModel, precision: str, kernel: str | None, name: str
) -> list[tuple[str, str]]:
    """Return (framework, kernel) of the methods of `precision`, those asked for."""
    known = [method.split("|") for method in sorted(model.parts[WHOLE].stages)]
    found = [
        (framework, each)
        for framework, each, stored in known
        if stored == precision and kernel in (None, each, each.partition(":")[2])
    ]
    if not found:
        offers = sorted({f"{each} ({stored})" for _, each, stored in known})
        raise InputError(
            f"the model knows no {kernel or 'kernel'} for {precision} weights",
            f"{name} was not priced",
            f"it knows {', '.join(offers)}",
        )
    return found


def _points(moe: StoredMoe, method: tuple[str, str], batches: list[Batch]) -> LayerPoints:
    columns = {
        "framework": method[0],
        "kernel": method[1],
        "precision": moe.precision,
        "hidden": moe.expert.d_model,
        "inner": moe.expert.d_ff,
        "top_k": moe.top_k,
        "experts": moe.experts,
        "ep_size": 1,
        "tp_size": 1,
    }
    points = LayerPoints.of_columns(
        {
            **{name: [value] * len(batches) for name, value in columns.items()},
            "tokens": [batch.tokens for batch in batches],
            "distribution": [batch.distribution for batch in batches],
        }
    )
    return points.with_load(load_of_counts([batch.counts for batch in batches]))


def _off(price: AdditivePrice, batches: list[Batch], wanted: Array) -> Array:
    return np.abs(price.price(batches) / wanted - 1.0)


def _figures(off: Array) -> dict[str, float]:
    percent = 100.0 * off
    return {
        "mape": float(percent.mean()),
        "median": float(np.median(percent)),
        "p90": float(np.quantile(percent, 0.9)),
    }


def _positive(values: Array) -> Array:
    """No price reaches zero: a share of the largest stands for it."""
    positive: Array = np.maximum(values, 1e-6 * values[-1])
    return positive


def _bands(
    quantiles: tuple[Array, Array, Array],
    tokens_an_expert: Array,
    knots: npt.NDArray[np.int64],
    off: Array,
) -> Array:
    """Return how far p95 lies above the median at each knot, as a logarithm.

    The model's own doubt of batches that give an expert about so many tokens, and how far the sum
    is from the model there, as independent errors add up.
    """
    own = np.log(quantiles[2] / quantiles[1])
    apart = np.abs(np.log2(np.maximum(tokens_an_expert, 1.0))[None, :] - np.log2(knots)[:, None])
    near = apart <= np.maximum(apart.min(axis=1, keepdims=True), 0.5)
    return np.array([np.hypot(own[at].mean(), np.quantile(np.log1p(off[at]), 0.9)) for at in near])


def _spread(value: float, band: float) -> tuple[float, float, float]:
    return float(value * np.exp(-band)), float(value), float(value * np.exp(band))
