"""The figures of a frame: errors of the model and of each baseline on the very same rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from costprof.costmodel.evaluation.choice import least_energy_choices

Array = npt.NDArray[np.float64]

_TIMES = {
    "costprof": "latency_us_p50",
    "linear in tokens": "linear_us",
    "roofline x boosting": "boosting_us",
    "analytic alone": "analytic_us",
    "roofline alone": "roofline_us",
    "carried, not corrected": "carried_us",
    "source as it is": "identity_us",
    "source x rooflines": "roofline_scaled_us",
}
_ENERGIES = {
    "costprof": "energy_mj_p50",
    "linear in tokens": "linear_mj",
    "source as it is": "identity_mj",
    "constant TDP x true latency": "constant_tdp_mj",
}
_LONG_MS = 0.34
_ALIGNED = 64


def figures_of(frame: pa.Table) -> dict[str, Any]:
    """Return, by quantity and subset, each method's MAPE, median, p90 and (ours) coverage.

    Errors are percent of the measured value, on the rows of a subset that all methods shown can
    tell; a method that can tell of none is left out.
    """
    aligned = _numbers(frame, "inner") % _ALIGNED == 0
    long_ms = _numbers(frame, "latency_us") >= _LONG_MS * 1e3
    capped = frame["power_capped"].to_numpy()
    everything = np.ones(frame.num_rows, dtype=bool)
    latency = {
        "all": everything,
        f"inner a multiple of {_ALIGNED}": aligned,
        f"inner no multiple of {_ALIGNED}": ~aligned,
    }
    if "identity_us" in frame.column_names:
        latency["not measured on the source"] = ~np.isfinite(_numbers(frame, "identity_us"))
    figures: dict[str, Any] = {
        "layers": frame.num_rows,
        "latency": {
            name: _methods(frame, "latency_us", _TIMES, mask)
            for name, mask in latency.items()
            if mask.any()
        },
    }
    read = np.isfinite(_numbers(frame, "energy_mj"))
    energy = {
        "all": read,
        f"at least {_LONG_MS} ms": read & long_ms,
        f"at least {_LONG_MS} ms, power-capped": read & long_ms & capped,
        f"at least {_LONG_MS} ms, not capped": read & long_ms & ~capped,
    }
    if read.any():
        figures["energy"] = {
            name: _methods(frame, "energy_mj", _ENERGIES, mask)
            for name, mask in energy.items()
            if mask.any()
        }
        choices = least_energy_choices(frame)
        if choices is not None:
            figures["least_energy_choice"] = choices
    return figures


def _methods(
    frame: pa.Table, quantity: str, methods: dict[str, str], mask: npt.NDArray[np.bool_]
) -> dict[str, Any]:
    truth = _numbers(frame, quantity)
    told = {
        name: _numbers(frame, column)
        for name, column in methods.items()
        if column in frame.column_names
    }
    told = {name: values for name, values in told.items() if np.isfinite(values[mask]).any()}
    for values in told.values():
        mask = mask & np.isfinite(values)
    result: dict[str, Any] = {}
    for name, values in told.items():
        result[name] = {"layers": int(mask.sum()), **error_figures(values[mask], truth[mask])}
    if "costprof" in result:
        low, high = (_numbers(frame, f"{quantity}_{at}") for at in ("p05", "p95"))
        inside = (truth >= low) & (truth <= high)
        result["costprof"]["coverage_90"] = float(100.0 * inside[mask].mean())
    return result


def error_figures(predicted: Array, truth: Array) -> dict[str, float]:
    """Return MAPE, median and 90th percentile of the error in percent of `truth`."""
    error = 100.0 * np.abs(predicted / truth - 1.0)
    return {
        "mape": float(error.mean()),
        "median": float(np.median(error)),
        "p90": float(np.quantile(error, 0.9)),
    }


def _numbers(frame: pa.Table, name: str) -> Array:
    values: Array = frame[name].cast(pa.float64()).fill_null(float("nan")).to_numpy()
    return values
