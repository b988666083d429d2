"""May a table measured there be used here? Another model: no. Another driver: with a warning."""

from __future__ import annotations

import warnings

from costprof.core.device import DeviceFingerprint
from costprof.core.errors import DeviceMismatchError
from costprof.costmodel.manifest import Manifest

_LIBRARIES = ("torch", "triton")
_RELATIVE_TOLERANCE = 0.01


class TableDriftWarning(UserWarning):
    """The table was measured under another driver, power limit or library: prices may be off."""


def check_device(
    measured: DeviceFingerprint, present: DeviceFingerprint, *, allow: bool = False
) -> bool:
    """Return whether both are one device model.

    Raises:
        DeviceMismatchError: they are not, and `allow` is False.
    """
    same = (measured.kind, measured.name) == (present.kind, present.name)
    if not same and not allow:
        raise DeviceMismatchError(
            f"the table was measured on {measured.name}, this machine has {present.name}",
            "its prices would be wrong here and it was not loaded",
            "measure this machine with `costprof sweep`, or allow the mismatch",
        )
    return same


def drifts(manifest: Manifest, present: DeviceFingerprint, software: dict[str, str]) -> list[str]:
    """List what differs between the measurement and now, short of the device model."""
    measured = manifest.device
    found = []
    if measured.driver != present.driver:
        found.append(f"driver {measured.driver or 'none'}, now {present.driver or 'none'}")
    limits = measured.power_limit_w, present.power_limit_w
    if abs(limits[0] - limits[1]) > _RELATIVE_TOLERANCE * max(limits):
        found.append(f"power limit {limits[0]:.0f} W, now {limits[1]:.0f} W")
    if measured.units and present.units and measured.units != present.units:
        name = "cores" if measured.kind == "cpu" else "multiprocessors"
        found.append(f"{measured.units} {name}, now {present.units}")
    for library in _LIBRARIES:
        before, now = manifest.software.get(library, ""), software.get(library, "")
        if before and now and before != now:
            found.append(f"{library} {before}, now {now}")
    return found


def warn_of_drift(manifest: Manifest, present: DeviceFingerprint, software: dict[str, str]) -> None:
    """Warn once, with `TableDriftWarning`, of all that differs."""
    found = drifts(manifest, present, software)
    if found:
        warnings.warn(
            f"the table was measured with {'; '.join(found)}: its prices may be off",
            TableDriftWarning,
            stacklevel=3,
        )
