"""Checks of policy parameters, with one message for all.

`set_number`, `set_whole` and `set_flag` check a field of a frozen dataclass, and leave in it what
Python has for a scalar of NumPy or torch: compiled code and its caches are given no other.
"""

from __future__ import annotations

from typing import Any

from costprof.core.errors import InputError

MOST = 1e30
"""The largest parameter: float32 holds it, and its products with what a batch has of logits."""

MOST_WHOLE = 2**31 - 1
"""The largest whole parameter: 64-bit counts of it cannot overflow."""

_CANNOT = "the policy cannot be built"


def check_number(
    name: str,
    value: float,
    low: float = 0.0,
    high: float = MOST,
    *,
    consequence: str = _CANNOT,
) -> None:
    """Check that `value` is a number in [low, high].

    Raises:
        InputError: it is not.
    """
    plain = _plain(value)
    if isinstance(plain, int | float) and low <= plain <= high:
        return
    too_low = isinstance(plain, int | float) and plain < low
    bound = f"at least {low:g}" if high >= MOST and too_low else f"{low:g} … {high:g}"
    raise InputError(f"{name} is {value}", consequence, f"use {bound}")


def check_whole(
    name: str,
    value: int | None,
    low: int,
    *,
    optional: bool = False,
    consequence: str = _CANNOT,
) -> None:
    """Check that `value` is a whole number from `low` to `MOST_WHOLE`, or None where `optional`.

    Raises:
        InputError: it is not.
    """
    plain = _plain(value)
    if optional and plain is None:
        return
    if _is_whole(plain) and low <= plain <= MOST_WHOLE:
        return
    too_large = _is_whole(plain) and plain > MOST_WHOLE
    bound = f"{low} … {MOST_WHOLE}" if too_large else f"at least {low}"
    raise InputError(f"{name} is {value}", consequence, f"use a whole number of {bound}")


def check_experts(name: str, experts: tuple[int, ...]) -> None:
    """Check that `experts` are a tuple of distinct expert numbers.

    Raises:
        InputError: they are not.
    """
    if not isinstance(experts, tuple):
        raise InputError(f"{name} is {experts!r}", _CANNOT, "give a tuple of expert numbers")
    whole = all(_is_whole(_plain(e)) and e >= 0 for e in experts)
    if not whole or len(set(experts)) != len(experts):
        raise InputError(
            f"{name} is {list(experts)}",
            _CANNOT,
            "name each expert once, by its number",
        )


def set_number(owner: object, name: str, low: float = 0.0, high: float = MOST) -> None:
    """Check field `name` of `owner` as `check_number` does, and leave a Python number in it."""
    value = getattr(owner, name)
    check_number(name, value, low, high)
    _set(owner, name, value)


def set_whole(owner: object, name: str, low: int, *, optional: bool = False) -> None:
    """Check field `name` of `owner` as `check_whole` does, and leave a Python int in it."""
    value = getattr(owner, name)
    check_whole(name, value, low, optional=optional)
    _set(owner, name, value)


def set_flag(owner: object, name: str) -> None:
    """Check that field `name` of `owner` is True or False, and leave Python's own in it.

    Raises:
        InputError: it is not.
    """
    value = getattr(owner, name)
    if not isinstance(_plain(value), bool):
        raise InputError(f"{name} is {value!r}", _CANNOT, "use True or False")
    _set(owner, name, value)


def _set(owner: object, name: str, value: object) -> None:
    object.__setattr__(owner, name, _plain(value))


def _plain(value: Any) -> Any:
    """A scalar of NumPy or torch as Python's own, anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
