"""The reader over NVML: by a simulated module here, by the real one where there is a GPU."""

from __future__ import annotations

import time

import pynvml
import pytest
from simulated_nvml import SimulatedGpu, SimulatedNvml, VirtualClock

from costprof.core.device import detect_device, gpu_uuid
from costprof.core.errors import ToolError
from costprof.profiler.energy.nvml import open_nvml, require_energy

GPU = SimulatedGpu(loads=((1.0, 2.0),), duration_s=3.0)
ENERGY = "nvmlDeviceGetTotalEnergyConsumption"
POWERS = ("NVML_FI_DEV_POWER_INSTANT", "NVML_FI_DEV_POWER_AVERAGE", "nvmlDeviceGetPowerUsage")


def nvml(**broken: Exception) -> SimulatedNvml:
    clock = VirtualClock()
    clock.now_s = 1.5
    return SimulatedNvml(GPU, clock, broken)


def test_everything_is_read_and_nvml_is_shut_down() -> None:
    module = nvml()
    reader = open_nvml("GPU-1", module)
    require_energy(reader)
    counter_mj = reader.counter_mj()
    assert counter_mj is not None
    assert counter_mj > 123_456_789
    assert reader.power_w() == pytest.approx(300, rel=0.05)
    average_w, *rest = reader.conditions()
    assert average_w == pytest.approx(185, rel=0.05), "half of the last second was idle"
    assert rest == [40.0, 1755.0, 2619.0, 0]
    assert reader.unavailable == {}
    reader.close()
    assert module.open == 0


def test_not_allowed_differs_from_not_there() -> None:
    reader = open_nvml(
        "GPU-1",
        nvml(
            **{
                ENERGY: pynvml.NVMLError_NoPermission(),
                "NVML_FI_DEV_POWER_INSTANT": pynvml.NVMLError_NotSupported(),
                "nvmlDeviceGetClockInfo": pynvml.NVMLError_Unknown(),
            }
        ),
    )
    assert reader.counter_mj() is None
    assert reader.power_w() is None
    assert reader.unavailable["energy counter"] == "permission denied"
    assert reader.unavailable["instantaneous power"] == "this GPU has none"
    assert reader.unavailable["SM clock"].startswith("NVML says: ")
    require_energy(reader)  # averaged power is left


@pytest.mark.parametrize(
    ("error", "fact", "way_out"),
    [
        (pynvml.NVMLError_NoPermission(), "energy counter: permission denied", "run as root"),
        (pynvml.NVMLError_NotSupported(), "energy counter: this GPU has none", "--energy-meter"),
    ],
)
def test_a_gpu_that_shows_nothing_is_refused(error: Exception, fact: str, way_out: str) -> None:
    reader = open_nvml("GPU-1", nvml(**dict.fromkeys((ENERGY, *POWERS), error)))
    with pytest.raises(ToolError) as raised:
        require_energy(reader)
    assert fact in raised.value.fact
    assert way_out in raised.value.way_out


def test_older_drivers_are_asked_the_older_way() -> None:
    module = nvml(
        nvmlDeviceGetCurrentClocksEventReasons=pynvml.NVMLError_FunctionNotFound(),
        NVML_FI_DEV_POWER_AVERAGE=pynvml.NVMLError_InvalidArgument(),
    )
    module.nvmlDeviceGetCurrentClocksThrottleReasons = lambda handle: 0x20  # type: ignore[attr-defined]
    reader = open_nvml("GPU-1", module)
    assert reader.conditions().throttle == 0x20
    assert reader.conditions().power_average_w is not None, "nvmlDeviceGetPowerUsage stands in"
    assert reader.unavailable == {}


def test_a_gpu_that_does_not_open_leaves_nvml_shut() -> None:
    module = nvml(nvmlDeviceGetHandleByUUID=pynvml.NVMLError_NotFound())
    with pytest.raises(ToolError, match="NVML does not open GPU-9"):
        open_nvml("GPU-9", module)
    assert module.open == 0
    with pytest.raises(ToolError, match="NVML does not start"):
        open_nvml("GPU-9", nvml(nvmlInit=pynvml.NVMLError_DriverNotLoaded()))


def test_a_split_gpu_is_refused() -> None:
    module = nvml()
    module.nvmlDeviceGetMigMode = lambda handle: [1, 1]  # type: ignore[attr-defined]
    with pytest.raises(ToolError, match="GPU-1 is split into MIG instances"):
        open_nvml("GPU-1", module)
    assert module.open == 0
    module.nvmlDeviceGetMigMode = lambda handle: [0, 1]  # type: ignore[attr-defined]
    open_nvml("GPU-1", module).close()


def test_a_gpu_that_is_lost_later_is_not_hidden() -> None:
    module = nvml()
    reader = open_nvml("GPU-1", module)
    module.broken[ENERGY] = pynvml.NVMLError_GpuIsLost()
    with pytest.raises(pynvml.NVMLError):
        reader.counter_mj()


def test_without_a_gpu_there_is_no_uuid() -> None:
    if detect_device().kind == "gpu":
        pytest.skip("this machine has a GPU")
    with pytest.raises(ToolError, match="NVML does not show GPU 0"):
        gpu_uuid()


@pytest.fixture
def real_gpu() -> str:
    if detect_device().kind != "gpu":
        pytest.skip("needs an NVIDIA GPU")
    return gpu_uuid()


@pytest.mark.gpu
def test_the_real_counter_moves_and_agrees_with_power(real_gpu: str) -> None:
    reader = open_nvml(real_gpu)
    try:
        require_energy(reader)
        first_mj, began = reader.counter_mj(), time.monotonic()
        if first_mj is None:
            pytest.skip(f"no energy counter: {reader.unavailable}")
        watts = []
        while time.monotonic() - began < 3.0:
            now_w = reader.power_w()
            watts.append(reader.conditions().power_average_w if now_w is None else now_w)
            time.sleep(0.01)
        last_mj = reader.counter_mj()
        seconds = time.monotonic() - began
    finally:
        reader.close()
    assert last_mj is not None
    counted_w = (last_mj - first_mj) / seconds / 1e3
    known = [value for value in watts if value is not None]
    assert counted_w == pytest.approx(sum(known) / len(known), rel=0.15)


@pytest.mark.gpu
def test_the_real_gpu_tells_its_conditions(real_gpu: str) -> None:
    reader = open_nvml(real_gpu)
    try:
        _, temp_c, sm_mhz, mem_mhz, bits = reader.conditions()
    finally:
        reader.close()
    assert temp_c is None or 0 < temp_c < 120
    assert sm_mhz is None or 0 < sm_mhz < 5000
    assert mem_mhz is None or 0 < mem_mhz < 20000
    assert bits is None or bits >= 0
