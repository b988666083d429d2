"""A table as a few observations at run time correct it; nothing is fitted again.

Latency gets a `Scale` (see `costprof.costmodel.calibration`) and active energy another. Without an
observed energy the table's stands, and its doubt grows by as much as latency moved: the truth lies
between the same joules and the same watts. Power follows from both.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from costprof.core.errors import InputError
from costprof.costmodel.calibration import Scale, fit_scale
from costprof.costmodel.manifest import Composition, Manifest
from costprof.costmodel.observation import Observation

Array = npt.NDArray[np.float64]

CALIBRATIONS = "calibrations"
"""Key of `Manifest.parameters` under which corrections stand, the oldest first."""

FARTHEST = 100.0
"""Ratio of observed and predicted beyond which nothing can be learned of the scale."""

_W_PER_MJ_US = 1e3


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the table said of a call that was observed.

    `class_id` is that of all experts that ran; empty where they were of several.
    """

    class_id: str
    latency_us: float
    energy_mj: float


@dataclass(frozen=True, slots=True)
class TableScales:
    """The corrections of a table by class id. `energy_observations` counts energies observed."""

    latency: Scale
    energy: Scale
    energy_observations: int


def fit_table_scales(
    predictions: Sequence[Prediction], observations: Sequence[Observation], power_limit_w: float
) -> TableScales:
    """Return how far `observations` [n] lie from `predictions` [n], by class.

    `power_limit_w` is what the table was measured under, 0 where that is not known.

    Raises:
        InputError: a prediction is not positive, or an observation `FARTHEST` times off from it.
    """
    for number, (said, seen) in enumerate(zip(predictions, observations, strict=True), start=1):
        _check_near(number, "us", said.latency_us, seen.latency_us)
        if seen.energy_mj is not None:
            _check_near(number, "mJ", said.energy_mj, seen.energy_mj)
    latency = _fitted(
        [
            (p, o, p.latency_us, o.latency_us)
            for p, o in zip(predictions, observations, strict=True)
        ],
        power_limit_w,
    )
    metered = [
        (p, o, p.energy_mj, o.energy_mj)
        for p, o in zip(predictions, observations, strict=True)
        if o.energy_mj is not None
    ]
    if metered:
        return TableScales(latency, _fitted(metered, power_limit_w), len(metered))
    own = {label: (0.0, abs(factor)) for label, (factor, _) in latency.own.items()}
    kept = Scale(0.0, abs(latency.log_factor), own, latency.observations)
    return TableScales(latency, kept, 0)


def _check_near(number: int, unit: str, predicted: float, observed: float) -> None:
    if predicted > 0.0 and abs(math.log(observed) - math.log(predicted)) > math.log(FARTHEST):
        raise InputError(
            f"observation {number} has {observed:g} {unit} where the table says {predicted:g}",
            f"more than {FARTHEST:.0f} times off is another call, unit or machine; no table was "
            "corrected",
            "give microseconds and millijoules of calls that the table prices",
        )


def _fitted(
    seen: list[tuple[Prediction, Observation, float, float]], power_limit_w: float
) -> Scale:
    def of(name: str) -> list[float]:
        values = (getattr(observation, name) for _, observation, _, _ in seen)
        return [np.nan if value is None else float(value) for value in values]

    return fit_scale(
        [predicted for _, _, predicted, _ in seen],
        [observed for _, _, _, observed in seen],
        [prediction.class_id for prediction, _, _, _ in seen],
        power_limit_w=of("power_limit_w"),
        table_limit_w=power_limit_w or None,
        temperature_c=of("temperature_c"),
    )


def corrected_rows(rows: pa.Table, scales: TableScales) -> pa.Table:
    """Return `rows` of `TABLE_SCHEMA` with latency, energy, power and heat corrected by class.

    Tiers, counters, operations and bytes stay. Of a row's power the active part (its energy over
    its latency) follows both corrections and the idle rest stays; the peak moves with it. The rise
    of temperature goes with the energy.
    """
    labels = rows["class_id"].to_pylist()
    old = {name: _numbers(rows, name) for name in rows.schema.names if _is_cost(name)}
    new = dict(old)
    for quantity, scale in (("latency_us", scales.latency), ("energy_mj", scales.energy)):
        names = [f"{quantity}_{at}" for at in ("p05", "p50", "p95")]
        new |= dict(
            zip(names, _corrected([old[name] for name in names], scale, labels), strict=True)
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        active_w = old["energy_mj_p50"] / old["latency_us_p50"] * _W_PER_MJ_US
        active_w = np.minimum(active_w, old["power_w"])
        slower = new["latency_us_p50"] / old["latency_us_p50"]
        hungrier = new["energy_mj_p50"] / old["energy_mj_p50"]
        power_w = old["power_w"] + active_w * (hungrier / slower - 1.0)
        # A row without an energy says nothing of its power.
        new["power_w"] = np.where(np.isfinite(power_w), power_w, old["power_w"])
        moved = new["power_w"] / old["power_w"]
    new["power_peak_w"] = old["power_peak_w"] * np.where(np.isfinite(moved), moved, 1.0)
    new["temp_rise_c"] = old["temp_rise_c"] * _factors(scales.energy, labels)
    for name, values in new.items():
        at = rows.schema.get_field_index(name)
        column = pa.array(values, pa.float64(), mask=np.isnan(values))
        rows = rows.set_column(at, rows.schema.field(name), column)
    return rows


def corrected_manifest(manifest: Manifest, scales: TableScales) -> Manifest:
    """Return `manifest` with the bases of layers corrected, and what was done as note and numbers.

    The content hash is that of a table not yet written: empty.
    """
    compositions = {
        name: _corrected_composition(name, each, scales)
        for name, each in manifest.compositions.items()
    }
    done = {
        "of": manifest.content_hash,
        "latency": scales.latency.to_dict(),
        "energy": scales.energy.to_dict(),
        "energy_observations": scales.energy_observations,
    }
    before = manifest.parameters.get(CALIBRATIONS, [])
    return dataclasses.replace(
        manifest,
        compositions=compositions,
        parameters={**manifest.parameters, CALIBRATIONS: [*before, done]},
        notes=(*manifest.notes, _note(manifest, scales)),
        content_hash="",
    )


def _corrected(
    quantiles: list[Array], scale: Scale, labels: list[str]
) -> tuple[Array, Array, Array]:
    """Correct (p05, p50, p95), each [n]; of what has no logarithm there is no interval to widen."""
    factors = _factors(scale, labels)
    low, middle, high = (values * factors for values in quantiles)
    whole = np.all([np.isfinite(values) & (values > 0.0) for values in quantiles], axis=0)
    of_whole = [label for label, inside in zip(labels, whole, strict=True) if inside]
    first, second, third = (values[whole] for values in quantiles)
    low[whole], middle[whole], high[whole] = scale.correct((first, second, third), of_whole)
    return low, middle, high


def _corrected_composition(name: str, parts: Composition, scales: TableScales) -> Composition:
    latency, energy = (_factors(each, [name])[0] for each in (scales.latency, scales.energy))
    return dataclasses.replace(
        parts,
        base_us=float(parts.base_us * latency),
        base_mj=float(parts.base_mj * energy),
    )


def _factors(scale: Scale, labels: list[str]) -> Array:
    """Return the factor on the median of each label [n]."""
    rest = (scale.log_factor, scale.std)
    return np.exp([scale.own.get(label, rest)[0] for label in labels])


def _note(manifest: Manifest, scales: TableScales) -> str:
    count, metered = scales.latency.observations, scales.energy_observations
    energy = (
        f"energies x{np.exp(scales.energy.log_factor):.3f} from {metered} of them"
        if metered
        else "energies as they were, none was observed"
    )
    of = f"table {manifest.content_hash[:8]}" if manifest.content_hash else "a table not written"
    return (
        f"calibrated from {count} observation{'' if count == 1 else 's'} ({of}): latencies "
        f"x{np.exp(scales.latency.log_factor):.3f}, more or less by class; {energy}; rows of tier "
        "measured are corrected like all others; errors, fitted parameters, configs of layers and "
        "the fitted model are those of before"
    )


def _numbers(rows: pa.Table, name: str) -> Array:
    return np.asarray(rows[name].to_numpy(), dtype=np.float64)


def _is_cost(name: str) -> bool:
    return name.startswith(("latency_us_", "energy_mj_", "power_", "temp_rise_c"))
