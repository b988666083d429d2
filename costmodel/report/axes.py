"""Axes of a plot: where values lie, and round numbers to mark them by."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_MARGIN = 0.03  # of the axis, on both sides of the values
_WIDE = 3.2  # decades from which powers of ten are marks enough
_MOST_TICKS = 8


@dataclass(frozen=True, slots=True)
class Axis:
    """`low` to `high`, both finite and `low` < `high`; `ticks` are values and what they are called.

    On a logarithmic axis both are positive.
    """

    title: str
    low: float
    high: float
    log: bool
    ticks: tuple[tuple[float, str], ...]

    def share(self, values: npt.ArrayLike) -> Array:
        """Return where `values` [n] lie: 0 at `low`, 1 at `high`; those beyond stay at the ends."""
        given = np.asarray(values, dtype=np.float64)
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            given = np.log(np.maximum(given, self.low))
        else:
            low, high = self.low, self.high
        return np.asarray(np.clip((given - low) / (high - low), 0.0, 1.0), dtype=np.float64)


def log_axis(title: str, values: Array) -> Axis:
    """Return a logarithmic axis around the positive finite ones of `values`."""
    low, high = _extent(values)
    margin = _MARGIN * max(math.log(high / low), math.log(2.0))
    low, high = low * math.exp(-margin), high * math.exp(margin)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    wide = math.log10(high / low) > _WIDE
    digits = (1,) if wide else (1, 2, 5)
    found = [digit * 10.0**power for power in range(first, last + 1) for digit in digits]
    return Axis(title, low, high, True, _ticks([v for v in found if low <= v <= high]))


def token_axis(values: Array, title: str = "tokens") -> Axis:
    """Return a logarithmic axis marked at powers of two, or of four where it is long."""
    low, high = _extent(values)
    margin = _MARGIN * max(math.log(high / low), math.log(2.0))
    low, high = low * math.exp(-margin), high * math.exp(margin)
    step = 1 if high / low < 2**_MOST_TICKS else 2
    powers = range(0, math.floor(math.log2(high)) + 1, step)
    return Axis(title, low, high, True, _ticks([2.0**p for p in powers if 2.0**p >= low]))


def linear_axis(title: str, low: float, high: float, step: float) -> Axis:
    """Return an axis from `low` to `high`, marked every `step`."""
    count = math.floor((high - low) / step + 1e-9)
    return Axis(title, low, high, False, _ticks([low + i * step for i in range(count + 1)]))


def short(value: float) -> str:
    """Return `value` to three digits, with a prefix from a thousand on.

    >>> short(16384.0), short(0.25), short(989e12)
    ('16.4k', '0.25', '989T')
    """
    size = abs(value)
    for unit, prefix in _PREFIXES:
        if size >= 0.9995 * unit:
            return f"{value / unit:.3g}".removesuffix(".0") + prefix
    return f"{value:.3g}"


def _ticks(values: list[float]) -> tuple[tuple[float, str], ...]:
    step = max(1, -(-len(values) // _MOST_TICKS))
    return tuple((value, _called(value)) for value in values[::step])


def _called(value: float) -> str:
    """Token counts up to 9999 are known by all their digits."""
    return f"{value:.0f}" if 1.0 <= value < 1e4 and value == round(value) else short(value)


def _extent(values: Array) -> tuple[float, float]:
    good = values[np.isfinite(values) & (values > 0.0)]
    if not len(good):
        return 1.0, 10.0
    low, high = float(good.min()), float(good.max())
    return (low, high) if high > 1.05 * low else (low / 1.5, high * 1.5)
