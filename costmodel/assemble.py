"""Turn a fitted model into the rows of a table: what was measured as measured, the rest around."""

from __future__ import annotations

import numpy as np

from costprof.costmodel.energy import PowerCurve
from costprof.costmodel.features import Array
from costprof.costmodel.measurements import MeasuredCurve
from costprof.costmodel.predict import LatencyModel
from costprof.costmodel.rows import TableRow, Tier
from costprof.costmodel.validation import Z90

_REACH = 4
"""How far beyond the largest measured token count the table goes."""

_TOKENLESS_OPS = ("pack", "unpack")


def token_grid(measured: Array) -> Array:
    """Return measured tokens with powers of two and 1.5 times them, up to four times the largest.

    >>> token_grid(np.array([1.0, 5.0])).tolist()
    [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 16.0, 20.0]
    """
    last = _REACH * measured[-1]
    doubling = 2.0 ** np.arange(int(np.log2(last)) + 1)
    between = np.concatenate([doubling, 1.5 * doubling[1:]])
    return np.union1d(np.append(measured, last), between[between <= last])


def curve_rows(curve: MeasuredCurve, model: LatencyModel, power: PowerCurve) -> list[TableRow]:
    """Return the rows of one curve over its token grid."""
    tokens = curve.tokens if curve.op in _TOKENLESS_OPS else token_grid(curve.tokens)
    latency = latency_quantiles(curve, model, tokens)
    energy = power.energy_mj(tokens, latency[1])
    energy_low, energy_high = power.interval_mj(tokens, latency)
    watts = power.watts_at(tokens) + power.idle_w
    measured = {int(count): row for count, row in zip(curve.tokens, curve.rows, strict=True)}
    rows = []
    for i, count in enumerate(tokens.astype(int).tolist()):
        row = measured.get(count, {})
        rows.append(
            TableRow(
                expert=curve.expert,
                op=curve.op,
                kernel=curve.kernel,
                cache_state=curve.cache_state,
                tokens=count,
                latency_us=(float(latency[0, i]), float(latency[1, i]), float(latency[2, i])),
                energy_mj=(float(energy_low[i]), float(energy[i]), float(energy_high[i])),
                power_w=float(watts[i]),
                power_peak_w=row.get("power_peak_w"),
                temp_rise_c=float(energy[i] * power.heat_c_per_mj),
                counters=dict(row.get("counters") or ()),
                tier=_tier(curve, count),
                energy_source=power.source,
            )
        )
    return rows


def latency_quantiles(curve: MeasuredCurve, model: LatencyModel, tokens: Array) -> Array:
    """Return p05, p50, p95 of a call's latency in µs at `tokens` [n]: [3, n].

    At measured tokens, what was measured. Elsewhere the spread of the calls, taken from the
    neighbours, and the doubt of the model about the median are independent: they add as squares.
    """
    median, std = model.predict(curve, tokens)
    at, known = np.log2(tokens), np.log2(curve.tokens)
    below = np.interp(at, known, np.log(curve.p50 / curve.p05))
    above = np.interp(at, known, np.log(curve.p95 / curve.p50))
    quantiles = np.stack(
        [
            median * np.exp(-np.hypot(below, Z90 * std)),
            median,
            median * np.exp(np.hypot(above, Z90 * std)),
        ]
    )
    measured = np.isin(tokens, curve.tokens)
    quantiles[:, measured] = np.stack([curve.p05, curve.p50, curve.p95])
    return quantiles


def _tier(curve: MeasuredCurve, tokens: int) -> Tier:
    if tokens in curve.tokens:
        return "measured"
    inside = curve.tokens[0] < tokens < curve.tokens[-1]
    return "interpolated" if inside else "extrapolated"
