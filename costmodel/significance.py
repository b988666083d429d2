"""Is a price different, or is it the doubt in both? Tests on log medians from 90 % intervals."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

Z95 = 1.6448536269514722
"""Standard deviations between the median and p95 of a normal distribution."""
LEAST_STD = 0.01
"""Relative doubt of any median: no measurement repeats better on another day."""


def log_std(p05: Array, p50: Array, p95: Array) -> Array:
    """Return the standard deviation [n] of a log median that the interval (p05, p95) [n] says.

    `ln(p95 / p05) / (2 · Z95)`; from the upper half alone where p05 is 0; at least `LEAST_STD`;
    NaN where the interval is missing, unordered or not positive.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        both = np.log(p95 / p05) / (2 * Z95)
        upper = np.log(p95 / p50) / Z95
    std = np.where(p05 == 0, upper, both)
    usable = (p05 >= 0) & (p05 <= p50) & (p50 > 0) & (p50 <= p95) & np.isfinite(std)
    return np.where(usable, np.maximum(std, LEAST_STD), np.nan)


def two_sided_p(difference: Array, std: Array) -> Array:
    """Return the p-values [n] of normal differences [n] with standard deviations `std` [n].

    >>> two_sided_p(np.array([0.0, 1.96]), np.array([1.0, 1.0])).round(2).tolist()
    [1.0, 0.05]
    """
    z = np.abs(difference) / std / math.sqrt(2)
    return np.array([math.erfc(each) for each in z], dtype=np.float64)


def discoveries(p_values: Array, rate: float) -> npt.NDArray[np.bool_]:
    """Return which hypotheses [n] fall at false discovery rate `rate`; NaN never does.

    Benjamini and Hochberg (1995): with p-values sorted, all up to the last one at or below
    `rate · rank / n`.

    >>> discoveries(np.array([0.04, 0.01, np.nan, 0.3]), 0.05).tolist()
    [False, True, False, False]
    """
    tested = np.flatnonzero(np.isfinite(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    passed = p_values[order] <= rate * np.arange(1, len(order) + 1) / max(len(order), 1)
    last = int(np.flatnonzero(passed).max(initial=-1)) + 1
    found = np.zeros(len(p_values), dtype=np.bool_)
    found[order[:last]] = True
    return found
