"""Why a GPU holds its clocks down: the bits of nvmlDeviceGetCurrentClocksThrottleReasons."""

from __future__ import annotations

REASONS = {
    0x001: "gpu_idle",
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake",
    0x100: "display_clock_setting",
    0x200: "board_limit",
    0x400: "reliability",
}
"""Names as NVML's header has them."""

POWER_CAP = 0x004 | 0x200
"""The device is at its power limit: a working point like another, and said."""

SLOWED = 0x008 | 0x020 | 0x040 | 0x080
"""Heat or a failing supply: the window shows a device in trouble, not what the kernel costs."""

_NOT_THROTTLING = 0x001 | 0x002 | 0x100


def names(bits: int) -> str:
    """Return the reasons in `bits` by name, "none" where nothing held the clocks down.

    >>> names(0x044)
    'sw_power_cap, hw_thermal_slowdown'
    >>> names(0x001)
    'none'
    """
    found = [name for bit, name in REASONS.items() if bits & bit & ~_NOT_THROTTLING]
    return ", ".join(found) or "none"
