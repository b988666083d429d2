"""Read power, energy and clocks of one NVIDIA GPU through NVML; never set anything.

- Energy counter: nvmlDeviceGetTotalEnergyConsumption, mJ since the driver was loaded; it moves
  every 20 to 100 ms.
- Power now: nvmlDeviceGetFieldValues, NVML_FI_DEV_POWER_INSTANT; A100 and H100 look about a quarter
  of the time.
- Power averaged over about a second: NVML_FI_DEV_POWER_AVERAGE, else nvmlDeviceGetPowerUsage (which
  on GA100 and before Ampere is power now).
- Temperature: nvmlDeviceGetTemperature, NVML_TEMPERATURE_GPU, in whole degrees.
- Clocks: nvmlDeviceGetClockInfo, NVML_CLOCK_SM and NVML_CLOCK_MEM, MHz.
- Throttle reasons of this moment: nvmlDeviceGetCurrentClocksEventReasons; in older drivers
  nvmlDeviceGetCurrentClocksThrottleReasons.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from costprof.core.errors import ToolError

OPEN_NVML = "costprof.profiler.energy.nvml:open_nvml"


class Conditions(NamedTuple):
    """What changes slowly; None where the device does not offer it."""

    power_average_w: float | None = None
    temp_c: float | None = None
    sm_clock_mhz: float | None = None
    mem_clock_mhz: float | None = None
    throttle: int | None = None


class Reader(Protocol):
    """What the sampler asks of a device; None where the device does not offer it."""

    def counter_mj(self) -> float | None:
        """Total-energy counter."""

    def power_w(self) -> float | None:
        """Instantaneous power."""

    def conditions(self) -> Conditions:
        """Averaged power, temperature, clocks, bits of `throttle.REASONS`."""

    def close(self) -> None:
        """Let go of the device."""


class NvmlReader:
    """Reads one GPU. `unavailable` says of each reading that cannot be had, why."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle
        self.unavailable: dict[str, str] = {}
        self._counter = self._optional("energy counter", self._read_counter)
        self._instant = self._optional("instantaneous power", self._read_instant)
        self._average = self._optional("averaged power", self._read_average, self._read_usage)
        self._temperature = self._optional("temperature", self._read_temperature)
        self._sm_clock = self._optional("SM clock", lambda: self._read_clock("NVML_CLOCK_SM"))
        self._mem_clock = self._optional("memory clock", lambda: self._read_clock("NVML_CLOCK_MEM"))
        self._throttle = self._optional(
            "throttle reasons", self._read_event_reasons, self._read_throttle_reasons
        )

    def counter_mj(self) -> float | None:
        """Energy in mJ since the driver was loaded."""
        return self._counter() if self._counter else None

    def power_w(self) -> float | None:
        """Power now."""
        return self._instant() if self._instant else None

    def conditions(self) -> Conditions:
        """Power averaged over about a second, temperature, clocks, bits of `throttle.REASONS`."""
        return Conditions(
            power_average_w=self._average() if self._average else None,
            temp_c=self._temperature() if self._temperature else None,
            sm_clock_mhz=self._sm_clock() if self._sm_clock else None,
            mem_clock_mhz=self._mem_clock() if self._mem_clock else None,
            throttle=int(self._throttle()) if self._throttle else None,
        )

    def close(self) -> None:
        """Shut NVML down."""
        self._nvml.nvmlShutdown()

    def _optional(self, name: str, *ways: Callable[[], float]) -> Callable[[], float] | None:
        """Return the first of `ways` that works; not allowed differs from not there."""
        for way in ways:
            try:
                way()
            except self._nvml.NVMLError_NoPermission:
                self.unavailable[name] = "permission denied"
            except self._nvml.NVMLError_NotSupported:
                self.unavailable.setdefault(name, "this GPU has none")
            except self._nvml.NVMLError as error:
                self.unavailable.setdefault(name, f"NVML says: {error}")
            except AttributeError:
                self.unavailable.setdefault(name, "nvidia-ml-py is too old for it")
            else:
                self.unavailable.pop(name, None)
                return way
        return None

    def _read_counter(self) -> float:
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))

    def _read_instant(self) -> float:
        return self._field("NVML_FI_DEV_POWER_INSTANT") / 1e3

    def _read_average(self) -> float:
        return self._field("NVML_FI_DEV_POWER_AVERAGE") / 1e3

    def _read_usage(self) -> float:
        return float(self._nvml.nvmlDeviceGetPowerUsage(self._handle)) / 1e3

    def _field(self, name: str) -> float:
        return field_value(self._nvml, self._handle, name)

    def _read_temperature(self) -> float:
        nvml = self._nvml
        return float(nvml.nvmlDeviceGetTemperature(self._handle, nvml.NVML_TEMPERATURE_GPU))

    def _read_clock(self, kind: str) -> float:
        nvml = self._nvml
        return float(nvml.nvmlDeviceGetClockInfo(self._handle, getattr(nvml, kind)))

    def _read_event_reasons(self) -> float:
        return float(self._nvml.nvmlDeviceGetCurrentClocksEventReasons(self._handle))

    def _read_throttle_reasons(self) -> float:
        return float(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle))


def field_value(nvml: Any, handle: Any, name: str) -> float:
    """Return the field `name`, for example NVML_FI_DEV_POWER_INSTANT in mW.

    Raises:
        NVMLError: of the field itself too, which nvmlDeviceGetFieldValues does not raise.
        AttributeError: nvidia-ml-py is too old to know it.
    """
    (value,) = nvml.nvmlDeviceGetFieldValues(handle, [getattr(nvml, name)])
    if value.nvmlReturn != nvml.NVML_SUCCESS:
        raise nvml.NVMLError(value.nvmlReturn)
    wide = value.valueType == nvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
    return float(value.value.ullVal if wide else value.value.uiVal)


def open_nvml(uuid: str, nvml: Any = None) -> NvmlReader:
    """Open the GPU `uuid` ("GPU-…", see `core.device.gpu_uuid`).

    Args:
        uuid: NVML's name of the GPU.
        nvml: The module `pynvml`, or None to import it.

    Raises:
        ToolError: NVML does not start, does not know the GPU, or the GPU is split (MIG).
    """
    if nvml is None:
        try:
            import pynvml
        except ImportError as error:
            raise _closed("pynvml is not installed", "pip install nvidia-ml-py") from error
        nvml = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise _closed(f"NVML does not start ({error})", "see costprof doctor") from error
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        if _is_split(nvml, handle):
            raise _closed(
                f"{uuid} is split into MIG instances, and its counter is that of all of them",
                "measure on a GPU that is not split",
            )
        return NvmlReader(nvml, handle)
    except nvml.NVMLError as error:
        nvml.nvmlShutdown()
        raise _closed(f"NVML does not open {uuid} ({error})", "see nvidia-smi -L") from error
    except ToolError:
        nvml.nvmlShutdown()
        raise


def _is_split(nvml: Any, handle: Any) -> bool:
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
    except (nvml.NVMLError, AttributeError):
        return False
    return bool(current)


def require_energy(reader: Reader) -> None:
    """Check that `reader` offers what energy can be measured from.

    Raises:
        ToolError: neither the counter nor power can be read.
    """
    offered = (reader.counter_mj(), reader.power_w(), reader.conditions().power_average_w)
    if any(value is not None for value in offered):
        return
    why: dict[str, str] = getattr(reader, "unavailable", {})
    denied = "permission denied" in why.values()
    raise ToolError(
        "neither the energy counter nor the power of this GPU can be read "
        f"({'; '.join(f'{name}: {reason}' for name, reason in why.items())})",
        "no energy was measured",
        "run as root, or let the administrator allow the reading"
        if denied
        else "leave --energy out, or log a wall meter and add --energy-meter (docs/energy.md)",
    )


def _closed(fact: str, way_out: str) -> ToolError:
    return ToolError(fact, "no energy was measured", way_out)
