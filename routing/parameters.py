"""Checks of policy parameters, with one message for all."""

from __future__ import annotations

import math

from costprof.core.errors import InputError


def check_number(
    name: str,
    value: float,
    low: float = 0.0,
    high: float = math.inf,
    *,
    consequence: str = "the policy cannot be built",
) -> None:
    """Check that `value` is finite and in [low, high].

    Raises:
        InputError: it is not.
    """
    good = isinstance(value, int | float) and math.isfinite(value) and low <= value <= high
    if not good:
        bound = f"at least {low:g}" if math.isinf(high) else f"{low:g} … {high:g}"
        raise InputError(f"{name} is {value}", consequence, f"use {bound}")


def check_whole(
    name: str,
    value: int | None,
    low: int,
    *,
    optional: bool = False,
    consequence: str = "the policy cannot be built",
) -> None:
    """Check that `value` is a whole number of at least `low`, or None where `optional`.

    Raises:
        InputError: it is not.
    """
    if optional and value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise InputError(f"{name} is {value}", consequence, f"use a whole number of at least {low}")


def check_experts(name: str, experts: tuple[int, ...]) -> None:
    """Check that `experts` are distinct expert numbers.

    Raises:
        InputError: they are not.
    """
    whole = all(isinstance(e, int) and not isinstance(e, bool) and e >= 0 for e in experts)
    if not whole or len(set(experts)) != len(experts):
        raise InputError(
            f"{name} is {list(experts)}",
            "the policy cannot be built",
            "name each expert once, by its number",
        )
