"""Units of ncu metrics, brought to base units.

A CSV raw page scales each column for reading (`Kbyte`, `usecond`), the report API gives base units
under other names (`byte/s`, `hz`). Prefixes are powers of 1000. Here both become one spelling:
byte, ns, hz, and what they are per.
"""

from __future__ import annotations

import re

_PREFIX = {"": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_SCALED = re.compile(r"([numKMGT]?)(byte|second|inst|thread|cycle|block|warp|sector|request|hz|Hz)")
_TIME_NS = {"s": 1e9, "ms": 1e6, "us": 1e3, "ns": 1.0, "minute": 6e10, "hour": 3.6e12}


def base_unit(unit: str) -> tuple[str, float]:
    """Return the base unit of `unit` and the factor that brings a value to it.

    Times become ns, rates per time become per s, cycles per time become hz. A unit not known here
    is returned as it is, with factor 1.

    >>> base_unit("Gbyte/second")
    ('byte/s', 1000000000.0)
    >>> base_unit("cycle/nsecond")
    ('hz', 1000000000.0)
    """
    above, _, below = unit.strip().partition("/")
    name, factor = _one(above)
    if not below:
        if name == "s":
            return "ns", factor * 1e9
        return name, factor
    below_name, below_factor = _one(below)
    factor /= below_factor
    if name == "cycle" and below_name == "s":
        return "hz", factor
    return f"{name}/{below_name}", factor


def _one(unit: str) -> tuple[str, float]:
    if unit in _TIME_NS:
        return "s", _TIME_NS[unit] / 1e9
    match = _SCALED.fullmatch(unit)
    if match is None:
        return unit, 1.0
    name = {"second": "s", "Hz": "hz"}.get(match[2], match[2])
    return name, _PREFIX[match[1]]
