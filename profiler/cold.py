"""How cold weights are kept cold, and whether they were.

In decode an expert's weights come from memory, so a cold scenario rotates through copies of them,
and a call must not find in the last-level cache what an earlier call on the same copy left there.
Caches do not evict the oldest line first; of one whose victims are random, with calls that read two
caches' worth before they come round again, a fifth is still there (h = exp(-2·(1 - h))).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from costprof.core.device import DeviceFingerprint
from costprof.profiler.scenario import Scenario

MIXED = "mixed"
"""The `cache_state` of a row whose weights were to be cold, and may in part have been cached."""

# What calls read before they come round to the same copy again.
_CACHES = 2
_UNKNOWN_CACHE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Copies:
    """The copies of the weights that a scenario rotated through, and the bytes of one."""

    number: int
    each_bytes: int


def rotate_bytes(scenario: Scenario, device: DeviceFingerprint) -> int:
    """Size of the copies that make the weights a call reads cold.

    A layer reads the weights of its active experts alone, so its copies must be larger for as much
    to be read between two calls on the same one.
    """
    return math.ceil(_cold_bytes(device) / _share_read(scenario))


def cold_problem(scenario: Scenario, device: DeviceFingerprint, copies: Copies) -> str | None:
    """Say why the weights of a cold scenario were not cold; None where they were.

    They are not where memory is short of copies and what a call reads of one is small.
    """
    read_bytes = copies.each_bytes * _share_read(scenario)
    if scenario.cache_state != "cold" or not read_bytes:
        return None
    if copies.number * read_bytes >= _cold_bytes(device):
        return None
    return (
        "not cold: memory does not hold enough copies of the weights "
        f"({copies.number} of them, of which a call reads {read_bytes / 2**20:.1f} MiB, for a "
        f"cache of {_cold_bytes(device) / _CACHES / 2**20:.1f} MiB)"
    )


def _cold_bytes(device: DeviceFingerprint) -> int:
    return _CACHES * (device.cache_bytes or _UNKNOWN_CACHE_BYTES)


def _share_read(scenario: Scenario) -> float:
    """Share of the weights that a call reads."""
    if scenario.layer is None:
        return 1.0
    active = sum(count > 0 for count in scenario.layer.counts)
    return max(active, 1) / scenario.layer.experts
