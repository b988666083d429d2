"""From the accepted trials of a scenario to one energy with its confidence interval."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MIN_TRIALS = 3
CONFIDENCE = 0.90
"""Of the interval: its bounds are a p05 and a p95, as the cost table has them."""

SOURCES = ("nvml_counter", "nvml_integral", "external_meter")
"""Best first: trials of different sources are not averaged."""

_ENDS = (
    "temp_before_c",
    "temp_after_c",
    "sm_clock_before_mhz",
    "sm_clock_after_mhz",
    "mem_clock_before_mhz",
    "mem_clock_after_mhz",
)

MEASURED_COLUMNS = (
    "energy_active_mj",
    "energy_idle_mj",
    "energy_mj_low",
    "energy_mj_high",
    "energy_mj",
    "energy_trusted",
    "energy_source",
    "power_mean_w",
    "power_peak_w",
    *_ENDS,
    "throttle_reasons",
)
"""Columns of `measurements/` that measured energy fills."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyResult:
    """Energy of one call over `trials` trials of one source.

    Attributes:
        active_mj, low_mj, high_mj: Mean above idle and the bounds of its confidence interval.
        cv: Standard deviation of the trials / mean.
        idle_w: Mean idle power.
        power_mean_w, power_peak_w: Mean, and the largest reading of any trial.
        ends: Means of the columns of temperature and clocks at the window's edges.
        throttle_reasons: Of any trial; None where they cannot be read.
    """

    source: str
    trials: int
    active_mj: float
    low_mj: float
    high_mj: float
    cv: float
    idle_w: float
    power_mean_w: float
    power_peak_w: float | None
    ends: dict[str, float | None]
    throttle_reasons: str | None

    def columns(self, latency_us: float) -> dict[str, Any]:
        """Return the columns of `measurements/` for a call that takes `latency_us`.

        Idle energy is that of the latency measured in the timing runs, so that idle power can be
        had from the row; the window's own share of it stands in `energy/`.
        """
        idle_mj = self.idle_w * latency_us * 1e-3
        return {
            "energy_active_mj": self.active_mj,
            "energy_idle_mj": idle_mj,
            "energy_mj_low": self.low_mj,
            "energy_mj_high": self.high_mj,
            "energy_mj": self.active_mj + idle_mj,
            # A trial whose window is too short is never accepted.
            "energy_trusted": True,
            "energy_source": self.source,
            "power_mean_w": self.power_mean_w,
            "power_peak_w": self.power_peak_w,
            **self.ends,
            "throttle_reasons": self.throttle_reasons,
        }


def energy_result(trials: Iterable[Mapping[str, Any]]) -> EnergyResult | None:
    """Return the result of the trials (rows of `energy/`) of one scenario.

    None if no source has three accepted ones.
    """
    accepted = [row for row in trials if row["status"] == "accepted"]
    for source in SOURCES:
        rows = [row for row in accepted if row["source"] == source]
        if len(rows) >= MIN_TRIALS:
            return _result(source, rows)
    return None


def mean_interval(values: list[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the bounds of Student's t interval of the mean: x̄ ± t · s / √n, n ≥ 2."""
    from scipy.stats import t

    half = float(t.ppf((1 + confidence) / 2, len(values) - 1))
    half *= statistics.stdev(values) / len(values) ** 0.5
    mean = statistics.fmean(values)
    return mean - half, mean + half


def _result(source: str, rows: list[Mapping[str, Any]]) -> EnergyResult:
    active = [row["energy_active_mj"] for row in rows]
    low_mj, high_mj = mean_interval(active)
    idle = [_first(row["idle_w_before"], row["idle_w_after"]) for row in rows]
    peaks = [row["power_peak_w"] for row in rows if row["power_peak_w"] is not None]
    mean_mj = statistics.fmean(active)
    return EnergyResult(
        source=source,
        trials=len(rows),
        active_mj=mean_mj,
        low_mj=max(low_mj, 0.0),
        high_mj=high_mj,
        cv=statistics.stdev(active) / mean_mj,
        idle_w=statistics.fmean(idle),
        power_mean_w=statistics.fmean(row["power_mean_w"] for row in rows),
        power_peak_w=max(peaks, default=None),
        ends={name: _mean([row[name] for row in rows]) for name in _ENDS},
        throttle_reasons=_union([row["throttle_reasons"] for row in rows]),
    )


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _union(texts: list[str | None]) -> str | None:
    known = [text for text in texts if text is not None]
    if not known:
        return None
    names = sorted({name for text in known for name in text.split(", ") if name != "none"})
    return ", ".join(names) or "none"
