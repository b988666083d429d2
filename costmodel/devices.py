"""Device constants: what a model of time, power and heat needs to know of a device.

Read from `data/devices/*.toml`. Ceilings of named GPUs are their public datasheets'; power splits
and thermal constants are modelling constants, chosen so that

- a kernel at the arithmetic ceiling draws about the power limit,
- a kernel at the memory ceiling draws about half of it (HBM access is 4 to 7 pJ per bit, O'Connor
  et al., MICRO 2017; moving the data on chip costs about as much again),
- a device at its limit sits some 35 to 40 °C above its idle temperature.

They stand for numbers nobody measured on the device at hand, hence `low` and `high`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import math
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from costprof.core.device import DeviceFingerprint, DeviceKind
from costprof.core.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """Constants of one device.

    Attributes:
        peak_flops: Dense arithmetic ceiling by dtype, operations per second.
        memory_bytes_per_s: Ceiling of memory traffic.
        launch_us: Time of a call that does nothing.
        power_limit_w: What the device throttles to.
        idle_w: Drawn doing nothing.
        busy_w: Drawn on top as soon as anything runs (clocks, schedulers, leakage).
        pj_per_flop, pj_per_byte: Energy of one operation and one byte moved, picojoules.
        low, high: Factors on the dynamic constants that span what is plausible.
        resistance_c_per_w, time_constant_s: One-pole thermal model.
        min_clock, min_voltage: Least core clock and the voltage there, as shares of the largest.
    """

    name: str
    kind: DeviceKind
    peak_flops: dict[str, float]
    memory_bytes_per_s: float
    launch_us: float
    power_limit_w: float
    idle_w: float
    busy_w: float
    pj_per_flop: float
    pj_per_byte: float
    low: float
    high: float
    resistance_c_per_w: float
    time_constant_s: float
    min_clock: float = 0.2
    min_voltage: float = 0.7

    def scaled(self, units: int) -> DeviceSpec:
        """Return the spec of `units` such devices side by side (the cores of a CPU)."""
        return dataclasses.replace(
            self,
            peak_flops={name: value * units for name, value in self.peak_flops.items()},
            memory_bytes_per_s=self.memory_bytes_per_s * units,
            power_limit_w=self.power_limit_w * units,
            idle_w=self.idle_w * units,
            busy_w=self.busy_w * units,
            resistance_c_per_w=self.resistance_c_per_w / units,
        )


def spec_for(device: DeviceFingerprint, *, units: int | None = None) -> DeviceSpec:
    """Return the constants of `device`; a generic spec where no file names it.

    A power limit the fingerprint knows wins over the datasheet's. `units` is the number of CPU
    cores that work (None: all in the fingerprint); GPUs ignore it.
    """
    same_kind = [values for values in _files() if values["kind"] == device.kind]
    named = [values for values in same_kind if _matches(values, device.name)]
    chosen = (named or [values for values in same_kind if not values["matches"]])[0]
    spec = _spec(chosen)
    if chosen.get("per_unit"):
        spec = spec.scaled(max(units or device.units, 1))
    if device.power_limit_w > 0:
        spec = dataclasses.replace(spec, power_limit_w=device.power_limit_w)
    return spec


def named_device(name: str) -> tuple[DeviceFingerprint, DeviceSpec]:
    """Return the device called `name`, and its constants.

    `name` is what the driver calls it (`NVIDIA H200`), a word of that or of the spec's name in any
    case (`h200`), or the path of a spec file of the user's own. A fingerprint can only know the
    name: the one given where the driver could have given it, else the spec's.

    Raises:
        InputError: no spec or several are called so, or the file is no spec.
    """
    if name.lower().endswith(".toml"):
        values = _own_file(Path(name))
        return _fingerprint(values, str(values["name"])), _spec(values)
    known = [values for values in _files() if values["matches"]]
    exact = [values for values in known if _matches(values, name)]
    found = exact or [values for values in known if _is_called(values, name)]
    if len(found) != 1:
        names = ", ".join(str(values["name"]) for values in found or known)
        raise InputError(
            f"device {name!r} could be any of {names}" if found else f"device {name!r} is unknown",
            "nothing was fitted",
            "be more precise" if found else f"use one of {names}, or the path of a spec file",
        )
    full = name if exact and name.startswith(_VENDOR) else f"{_VENDOR} {found[0]['matches'][0]}"
    return _fingerprint(found[0], full), _spec(found[0])


_VENDOR = "NVIDIA"  # how the drivers of all devices in data/devices begin their names


def _fingerprint(values: dict[str, Any], name: str) -> DeviceFingerprint:
    return DeviceFingerprint(
        kind=values["kind"], name=name, power_limit_w=float(values["power"]["limit_w"])
    )


def _is_called(values: dict[str, Any], name: str) -> bool:
    pattern = re.compile(rf"\b{re.escape(name.strip())}\b", re.IGNORECASE)
    return bool(name.strip()) and any(
        pattern.search(text) for text in (values["name"], *values["matches"])
    )


def _own_file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        spec = _spec(values)
        constants = {**dataclasses.asdict(spec), **spec.peak_flops}
        texts = {name: constants.pop(name) for name in ("name", "kind")}
        del constants["peak_flops"]
        wrong = [name for name, value in constants.items() if not 0.0 < float(value) < math.inf]
        if wrong or not spec.peak_flops:
            raise ValueError(f"{', '.join(wrong) or 'flops'} must be positive")
        if texts["kind"] not in get_args(DeviceKind) or not isinstance(texts["name"], str):
            raise ValueError("kind must be gpu or cpu, name a text")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be read as a device's spec ({type(error).__name__}: {error})",
            "nothing was fitted",
            "write it like the files in data/devices",
        ) from error
    return values


def known_spec(device: DeviceFingerprint) -> DeviceSpec:
    """Return the constants of `device`, as `spec_for` does, but none that are made up.

    Raises:
        InputError: no file names it.
    """
    if known_spec_name(device.name) is None:
        raise InputError(
            f"nothing is known of the device {device.name!r}",
            "prices cannot be carried between it and another; nothing was fitted",
            "write a file like those in data/devices: for a target as --device, for a source there",
        )
    return spec_for(device)


def known_spec_name(name: str) -> str | None:
    """Return the name of the spec of the device that the driver calls `name`, if there is one."""
    return next((str(values["name"]) for values in _files() if _matches(values, name)), None)


def _matches(values: dict[str, Any], name: str) -> bool:
    return any(re.search(rf"\b{re.escape(ending)}$", name) for ending in values["matches"])


@functools.cache
def _files() -> tuple[dict[str, Any], ...]:
    folder = importlib.resources.files("costprof.data.devices")
    found = sorted(
        (file for file in folder.iterdir() if file.name.endswith(".toml")),
        key=lambda file: file.name,
    )
    return tuple(tomllib.loads(file.read_text(encoding="utf-8")) for file in found)


def _spec(values: dict[str, Any]) -> DeviceSpec:
    ceilings, power, thermal = values["ceilings"], values["power"], values["thermal"]
    clocks = values.get("clocks", {})
    return DeviceSpec(
        name=values["name"],
        kind=values["kind"],
        peak_flops=ceilings["flops"],
        memory_bytes_per_s=ceilings["memory_bytes_per_s"],
        launch_us=ceilings["launch_us"],
        power_limit_w=power["limit_w"],
        idle_w=power["idle_w"],
        busy_w=power["busy_w"],
        pj_per_flop=power["pj_per_flop"],
        pj_per_byte=power["pj_per_byte"],
        low=power["low"],
        high=power["high"],
        resistance_c_per_w=thermal["resistance_c_per_w"],
        time_constant_s=thermal["time_constant_s"],
        **{f"min_{name}": clocks[name] for name in ("clock", "voltage") if name in clocks},
    )
