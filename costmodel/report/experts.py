"""The calls of a sweep, and what its cost table's method predicts without them."""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from costprof.core.expert import DTYPE_BYTES
from costprof.core.work import Work, op_work
from costprof.costmodel.assemble import curve_rows
from costprof.costmodel.composition import fit_compositions
from costprof.costmodel.devices import DeviceSpec
from costprof.costmodel.energy import power_curve
from costprof.costmodel.measurements import expert_of, measured_curves
from costprof.costmodel.predict import Roofline
from costprof.costmodel.report.calls import Array, Calls, Errors, HeldOut, Strings
from costprof.costmodel.residual import fit_latency
from costprof.costmodel.rows import rows_table
from costprof.costmodel.titles import KIND_TITLES, METHOD_TITLES
from costprof.costmodel.validation import (
    KINDS,
    Fold,
    calibrated,
    energy_figures,
    half_widths,
    latency_figures,
    leave_one_out,
)

Progress = Callable[[str, int, int], None]

_BITS = {"int8": 8.0, "fp8": 8.0, "fp8_block": 8.0, "int4": 4.0, "mxfp4": 4.0}
_TOKENLESS_OPS = ("pack", "unpack")


@dataclass(frozen=True)
class MeasuredExperts:
    """Calls of a sweep, the ceilings they were seen to reach, and the held-out predictions."""

    calls: Calls
    roofline: Roofline
    held_out: HeldOut | None


def measured_experts(
    rows: list[dict[str, Any]], spec: DeviceSpec, progress: Progress
) -> MeasuredExperts:
    """Return the calls of usable `rows`, layers whose token counts are known among them.

    At least one row must be of something else than a layer. `held_out` is None where no curve has
    two points.
    """
    curves = measured_curves([row for row in rows if row["op"] != "layer"])
    model = fit_latency(curves)
    folds = leave_one_out(curves, model, lambda done, of: progress("validating", done, of))
    model = calibrated(model, folds)
    table = rows_table(
        row for curve in curves for row in curve_rows(curve, model, power_curve(curve, spec))
    )
    _, layers = fit_compositions(table, [row for row in rows if row["op"] == "layer"])
    return MeasuredExperts(
        calls=_calls([row for row in rows if row["op"] not in _TOKENLESS_OPS]),
        roofline=model.roofline,
        held_out=_held_out(folds, energy_figures(folds, spec), layers) if folds else None,
    )


def _calls(rows: list[dict[str, Any]]) -> Calls:
    def column(name: str) -> Array:
        return np.array([row[name] for row in rows], dtype=np.float64)

    ranks = np.where(np.isnan(column("ep_size")), 1.0, column("ep_size") * column("tp_size"))
    per_rank = column("tokens")
    batch = column("batch_tokens")
    works = [_work(row) for row in rows]
    flops = np.array([work.flops for work in works])
    size = np.array([work.bytes for work in works])
    precision = [_precision(row) for row in rows]
    shape = [_shape(row) for row in rows]
    choice = [
        ", ".join(filter(None, (kind, row["cache_state"], row["kernel"], _config(row))))
        for row, kind in zip(rows, precision, strict=True)
    ]
    counts = [row["counts"] or [] for row in rows]
    return Calls(
        series=_texts(f"{row['op']} {kind}" for row, kind in zip(rows, precision, strict=True)),
        precision=_texts(precision),
        shape=_texts(shape),
        choice=_texts(choice),
        cell=_texts(
            f"{size} {kind}{'' if row['cache_state'] == 'cold' else ' ' + row['cache_state']}"
            for row, size, kind in zip(rows, shape, precision, strict=True)
        ),
        tokens=np.where(np.isnan(batch), per_rank, batch),
        latency_us=column("latency_us_p50"),
        flops=flops,
        bytes=size,
        energy_mj=np.array([_energy(row) for row in rows]),
        power_w=column("power_mean_w"),
        rise_c=column("temp_rise_c"),
        ranks=ranks,
        active=np.array([float(sum(n > 0 for n in each)) if each else 1.0 for each in counts]),
        even=np.array([not each or max(each) - min(each) <= 1 for each in counts]),
        features=_features(rows, flops, size),
    )


def _features(rows: list[dict[str, Any]], flops: Array, size: Array) -> dict[str, Array]:
    """What is known of a call before it is made; names and states as numbers."""

    def number(value: Any) -> float:
        return float(value) if value is not None else np.nan

    found = {
        name: np.array([number(row[name]) for row in rows])
        for name in ("tokens", "d_model", "d_ff", "context_len", "experts", "top_k")
    }
    found.update(flops=flops, bytes=size, flops_per_byte=flops / size)
    found["weight_bits"] = np.array(
        [_BITS.get(row["quantisation"], 8.0 * DTYPE_BYTES[row["dtype"]]) for row in rows]
    )
    for name in ("op", "kernel", "cache_state"):
        order = sorted({row[name] for row in rows})
        found[f"{name} (by name)"] = np.array([float(order.index(row[name])) for row in rows])
    configs = [json.loads(row["config"]) for row in rows]
    for name in sorted({name for config in configs for name in config}):
        found[f"config {name}"] = np.array([number(config.get(name)) for config in configs])
    return found


def _held_out(folds: list[Fold], energies: Mapping[str, Any], layers: Mapping[str, Any]) -> HeldOut:
    ordered = [(kind, fold) for kind in KINDS for fold in folds if fold.kind == kind]

    def column(name: str) -> Array:
        return np.array([getattr(fold, name) for _, fold in ordered])

    errors = [
        _errors(f"latency, {KIND_TITLES[kind]}", method, values)
        for kind, methods in latency_figures(folds).items()
        for method, values in methods.items()
    ]
    for source, methods in energies.items():
        errors += [_errors(f"energy ({source})", name, values) for name, values in methods.items()]
    for class_id, layer in layers.items():
        what = f"layer of {class_id[:6]}"
        for name, values in layer["latency"].items():
            errors.append(_errors(f"{what}, latency", name, values))
        for name, values in (layer["energy"] or {}).items():
            errors.append(_errors(f"{what}, energy ({layer['energy_source']})", name, values))
    return HeldOut(
        how="each measured token count left out of its curve in turn",
        series=_texts(KIND_TITLES[kind] for kind, _ in ordered),
        tokens=np.array([fold.curve.tokens[fold.point] for _, fold in ordered]),
        measured_us=column("measured"),
        predicted_us=column("model"),
        half_width=np.concatenate([half_widths(folds, kind) for kind in KINDS]),
        baselines={"linear in tokens": column("linear"), "roofline alone": column("roofline")},
        errors=errors,
        energy_note=(
            "Modelled energy is held against the power model, not against a meter."
            if "modelled" in energies
            else ""
        ),
    )


def _errors(what: str, method: str, values: Mapping[str, Any]) -> Errors:
    coverage = values.get("coverage_90")
    return Errors(
        what,
        METHOD_TITLES[method],
        values["points"],
        values["mape"],
        values["median"],
        values["p90"],
        coverage,
    )


def _work(row: Mapping[str, Any]) -> Work:
    """Compulsory work, from shapes as the fit has it; a layer's is that of its active experts."""
    expert = expert_of(row)
    if row["op"] != "layer":
        return op_work(expert, row["op"], row["tokens"])
    parts = [op_work(expert, "expert", count) for count in row["counts"] if count]
    return functools.reduce(operator.add, parts)


def _precision(row: Mapping[str, Any]) -> str:
    return str(row["dtype"] if row["quantisation"] == "none" else row["quantisation"])


def _shape(row: Mapping[str, Any]) -> str:
    size = f"{row['d_model']}×{row['d_ff']}" if row["d_ff"] else f"{row['d_model']}"
    if row["op"] == "layer":
        size = f"{row['experts']} × {size}"
    return size if row["op"] == "expert" else f"{row['op']} {size}"


def _config(row: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(json.loads(row["config"]).items()))


def _energy(row: Mapping[str, Any]) -> float:
    """All energy of a call; rows of earlier datasets have it in two parts."""
    if row["energy_mj"] is not None:
        known = row["energy_trusted"] is not False
        return float(row["energy_mj"]) if known else np.nan
    parts = (row["energy_active_mj"], row["energy_idle_mj"])
    return float(sum(parts)) if None not in parts else np.nan


def _texts(values: Any) -> Strings:
    return np.array(list(values), dtype=str)
