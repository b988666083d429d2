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
import re
import tomllib
from dataclasses import dataclass
from typing import Any

from costprof.core.device import DeviceFingerprint, DeviceKind


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
