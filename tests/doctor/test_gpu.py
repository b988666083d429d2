"""NVML's answers, by a stand-in that raises NVML's own errors."""

from __future__ import annotations

from typing import Any

import pynvml
import pytest

from costprof.core.device import detect_device
from costprof.profiler.doctor.check import Check
from costprof.profiler.doctor.gpu import ENERGY, GPU, POWER, gpu_checks


class Nvml:
    """Answers like the module `pynvml` on a machine with `gpus` GPUs.

    `energies_mj` are the readings of the energy counter in turn; an error in place of a value is
    raised.
    """

    NVML_SUCCESS = pynvml.NVML_SUCCESS
    NVML_FI_DEV_POWER_INSTANT = pynvml.NVML_FI_DEV_POWER_INSTANT
    NVML_VALUE_TYPE_UNSIGNED_LONG_LONG = pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
    NVMLError = pynvml.NVMLError
    NVMLError_NotSupported = pynvml.NVMLError_NotSupported
    NVMLError_NoPermission = pynvml.NVMLError_NoPermission
    NVMLError_LibraryNotFound = pynvml.NVMLError_LibraryNotFound
    NVMLError_DriverNotLoaded = pynvml.NVMLError_DriverNotLoaded

    def __init__(self, **answers: Any) -> None:
        self.answers = {
            "init": None,
            "gpus": 1,
            "name": "NVIDIA H200",
            "driver": b"570.1",
            "power_mw": 120_000,
            "limit_mw": 700_000,
            "instant_mw": 118_000,
            "energies_mj": [1000, 1000, 1060],
            **answers,
        }
        self.open = 0

    def answer(self, name: str) -> Any:
        value = self.answers[name]
        if isinstance(value, Exception):
            raise value
        return value

    def nvmlInit(self) -> None:
        self.answer("init")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return int(self.answer("gpus"))

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:
        return str(self.answer("name"))

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return bytes(self.answer("driver"))

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return int(self.answer("power_mw"))

    def nvmlDeviceGetFieldValues(self, handle: int, fields: list[int]) -> list[Any]:
        assert fields == [pynvml.NVML_FI_DEV_POWER_INSTANT]
        value = pynvml.c_nvmlFieldValue_t()
        value.nvmlReturn = pynvml.NVML_SUCCESS
        value.valueType = pynvml.NVML_VALUE_TYPE_UNSIGNED_INT
        answer = self.answers["instant_mw"]
        if isinstance(answer, int):
            value.value.uiVal = answer
        else:  # the call succeeds, the field says what is wrong with it
            value.nvmlReturn = answer.value
        return [value]

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:
        return int(self.answer("limit_mw"))

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        return int(self.answer("energies_mj").pop(0))


def checks(**answers: Any) -> dict[str, Check]:
    nvml = Nvml(**answers)
    found = {check.name: check for check in gpu_checks(nvml, wait_s=0.001)}
    assert list(found) == [GPU, ENERGY, POWER]
    assert nvml.open == 0, "NVML was not shut down"
    return found


def test_a_whole_gpu() -> None:
    found = checks()
    assert {check.status for check in found.values()} == {"ok"}
    assert found[GPU].found == "NVIDIA H200, driver 570.1"
    assert found[ENERGY].found.startswith("60 mJ in 0.001 s")
    assert found[POWER].found == "120 W by the driver's average, 118 W now, limit 700 W"


def test_several_gpus_are_said() -> None:
    assert "(the first of 8)" in checks(gpus=8)[GPU].found


@pytest.mark.parametrize(
    ("error", "found", "way_out"),
    [
        (pynvml.NVMLError_LibraryNotFound(), "no NVIDIA driver", "install its driver"),
        (pynvml.NVMLError_DriverNotLoaded(), "installed but not loaded", "modprobe nvidia"),
        (pynvml.NVMLError_LibRmVersionMismatch(), "NVML does not start (", "nvidia-smi"),
    ],
)
def test_no_driver(error: Exception, found: str, way_out: str) -> None:
    lines = checks(init=error)
    assert {check.status for check in lines.values()} == {"missing"}
    assert found in lines[GPU].found
    assert way_out in lines[GPU].way_out
    assert lines[ENERGY].way_out.startswith("see 'GPU and driver', or log a wall meter")


def test_a_driver_without_a_gpu() -> None:
    assert "sees no GPU" in checks(gpus=0)[GPU].found
    assert "no usable GPU (" in checks(gpus=pynvml.NVMLError_GpuIsLost())[GPU].found


class Denied(list[int]):
    """Readings that are refused with an error."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def pop(self, index: Any = -1) -> int:
        raise self.error


def test_an_energy_counter_that_is_not_there_differs_from_a_forbidden_one() -> None:
    absent = checks(energies_mj=Denied(pynvml.NVMLError_NotSupported()))[ENERGY]
    assert (absent.status, absent.found) == ("missing", "this GPU has none")
    assert "nvml_integral" in absent.consequence
    forbidden = checks(energies_mj=Denied(pynvml.NVMLError_NoPermission()))[ENERGY]
    assert (forbidden.status, forbidden.found) == ("degraded", "permission denied")
    assert "root" in forbidden.way_out
    other = checks(energies_mj=Denied(pynvml.NVMLError_Unknown()))[ENERGY]
    assert other.status == "missing"
    assert other.found.startswith("NVML says: ")


def test_an_energy_counter_that_stands_still() -> None:
    found = checks(energies_mj=[0, 0, 0])[ENERGY]
    assert (found.status, found.found) == ("degraded", "it did not move in 0.001 s (twice 0 mJ)")


def test_without_energy_and_power_energy_is_modelled() -> None:
    error = pynvml.NVMLError_NotSupported()
    found = checks(energies_mj=Denied(error), power_mw=error)
    assert found[POWER].status == "missing"
    assert "modelled" in found[ENERGY].consequence


def test_power_without_a_limit() -> None:
    found = checks(limit_mw=pynvml.NVMLError_NotSupported())[POWER]
    assert found.status == "ok"
    assert found.found.endswith("118 W now, limit not told")


def test_power_without_a_reading_of_the_moment() -> None:
    found = checks(instant_mw=pynvml.NVMLError_NotSupported())[POWER]
    assert found.status == "ok"
    assert "none of this moment (peaks are not recorded)" in found.found


def test_this_machine() -> None:
    real = {check.name: check for check in gpu_checks(wait_s=0.0)}
    assert (real[GPU].status == "ok") == (detect_device().kind == "gpu")
    assert all(check.way_out for check in real.values() if check.status != "ok")
