"""The NVIDIA GPU as its driver shows it: who it is, its energy counter, its power."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from costprof.profiler.doctor.check import Check
from costprof.profiler.energy.nvml import field_value

GPU, ENERGY, POWER = "GPU and driver", "NVML energy counter", "NVML power"
_MODELLED = "energy is modelled from stated constants (energy_source = modelled)"
_INTEGRAL = "energy can only be integrated from power samples (energy_source = nvml_integral)"
_NO_DRIVER = "on a machine with an NVIDIA GPU, install its driver; in a container, pass the GPU in"
_SEE_GPU = f"see '{GPU}'"
_METER = f"{_SEE_GPU}, or log a wall meter: costprof sweep --energy N --energy-meter"
# The counter ticks every 20 to 100 ms.
_TICK_WAIT_S = 0.25


def gpu_checks(nvml: Any = None, *, wait_s: float = _TICK_WAIT_S) -> list[Check]:
    """Ask NVML for GPU 0: its name, its energy counter (read twice) and its power.

    Args:
        nvml: The module `pynvml`, or None to import it.
        wait_s: Seconds between the two readings of the energy counter.
    """
    if nvml is None:
        try:
            import pynvml
        except ImportError:
            return _without_gpu("pynvml is not installed", "pip install nvidia-ml-py")
        nvml = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError_LibraryNotFound:
        return _without_gpu("no NVIDIA driver: its library NVML is not here", _NO_DRIVER)
    except nvml.NVMLError_DriverNotLoaded:
        return _without_gpu(
            "the NVIDIA driver is installed but not loaded", "load it: modprobe nvidia"
        )
    except nvml.NVMLError as error:
        return _without_gpu(f"NVML does not start ({error})", "see what nvidia-smi says")
    try:
        return _first_gpu(nvml, wait_s)
    finally:
        nvml.nvmlShutdown()


def _without_gpu(found: str, way_out: str) -> list[Check]:
    return [
        Check(GPU, "missing", found, "experts are measured on the CPU", way_out),
        Check(ENERGY, "missing", "no GPU", _MODELLED, _METER),
        Check(POWER, "missing", "no GPU", "power is modelled", _SEE_GPU),
    ]


def _first_gpu(nvml: Any, wait_s: float) -> list[Check]:
    try:
        count = int(nvml.nvmlDeviceGetCount())
        if count == 0:
            return _without_gpu("the NVIDIA driver runs but sees no GPU", "see nvidia-smi -L")
        handle = nvml.nvmlDeviceGetHandleByIndex(0)
        name = _text(nvml.nvmlDeviceGetName(handle))
        driver = _text(nvml.nvmlSystemGetDriverVersion())
    except nvml.NVMLError as error:
        return _without_gpu(f"NVML finds no usable GPU ({error})", "see what nvidia-smi says")
    more = f" (the first of {count})" if count > 1 else ""
    power = _power(nvml, handle)
    return [
        Check(GPU, "ok", f"{name}{more}, driver {driver}"),
        _energy(nvml, handle, wait_s, fallback=_INTEGRAL if power.status == "ok" else _MODELLED),
        power,
    ]


def _energy(nvml: Any, handle: Any, wait_s: float, *, fallback: str) -> Check:
    def read() -> int:
        return int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))

    refused = _refusal(nvml, ENERGY, read, fallback)
    if refused is not None:
        return refused
    first_mj = read()
    time.sleep(wait_s)
    second_mj = read()
    if second_mj <= first_mj:
        return Check(
            ENERGY,
            "degraded",
            f"it did not move in {wait_s:g} s (twice {second_mj} mJ)",
            fallback,
            "see whether nvidia-smi -q -d POWER shows a draw; restart the driver",
        )
    watts = (second_mj - first_mj) / wait_s / 1e3
    return Check(ENERGY, "ok", f"{second_mj - first_mj} mJ in {wait_s:g} s (about {watts:.0f} W)")


def _power(nvml: Any, handle: Any) -> Check:
    def read() -> int:
        return int(nvml.nvmlDeviceGetPowerUsage(handle))

    refused = _refusal(nvml, POWER, read, "mean and peak power are not recorded")
    if refused is not None:
        return refused
    # Since Ampere (but GA100) this call averages over about a second.
    found = f"{read() / 1e3:.0f} W by the driver's average, {_instant(nvml, handle)}"
    try:
        found += f", limit {nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3:.0f} W"
    except nvml.NVMLError:
        found += ", limit not told"
    return Check(POWER, "ok", found)


def _instant(nvml: Any, handle: Any) -> str:
    try:
        return f"{field_value(nvml, handle, 'NVML_FI_DEV_POWER_INSTANT') / 1e3:.0f} W now"
    except (nvml.NVMLError, AttributeError):
        return "none of this moment (peaks are not recorded)"


def _refusal(nvml: Any, name: str, read: Callable[[], int], consequence: str) -> Check | None:
    """Return why `read` cannot be made, or None; not allowed differs from not there."""
    try:
        read()
    except nvml.NVMLError_NotSupported:
        return Check(
            name, "missing", "this GPU has none", consequence, "none: it is the hardware's limit"
        )
    except nvml.NVMLError_NoPermission:
        return Check(
            name,
            "degraded",
            "permission denied",
            consequence,
            "run as root, or let the administrator of the machine allow the reading",
        )
    except nvml.NVMLError as error:
        return Check(
            name, "missing", f"NVML says: {error}", consequence, "see what nvidia-smi -q says"
        )
    return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
