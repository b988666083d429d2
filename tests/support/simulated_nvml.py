"""A simulated GPU on a virtual clock, and the module `pynvml` as it would answer for it.

The true power is known at every moment: idle, what the kernel draws while it runs, and leakage that
rises with the temperature (one thermal pole). What NVML shows of it is as poor as the real thing:

- the energy counter moves every `tick_s`, from a phase that depends on the seed;
- the instantaneous power looks at 25 ms of every 100 ms, as on A100 and H100;
- `nvmlDeviceGetPowerUsage` is an average over the last second.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pynvml
from scipy.signal import lfilter

from costprof.profiler.energy.nvml import NvmlReader
from costprof.profiler.energy.sampler import sample
from costprof.profiler.energy.trace import Progress, Sample, Trace, Window
from costprof.profiler.energy.workload import Phases

_STEP_S = 2.5e-4


class VirtualClock:
    """Time that passes when somebody waits."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def now(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass(frozen=True, kw_only=True)
class Throttling:
    """From `start_s` to `end_s` the kernel runs at `factor` of its speed and power above idle."""

    start_s: float
    end_s: float
    bits: int
    factor: float = 0.7


@dataclass(frozen=True, kw_only=True)
class SimulatedGpu:
    """Truth, over `duration_s`; the kernel runs back to back in `loads`, pairs of start and end."""

    loads: tuple[tuple[float, float], ...]
    duration_s: float
    call_us: float = 50.0
    kernel_w: float = 230.0
    idle_w: float = 70.0
    leakage_w_per_c: float = 0.25
    resistance_c_per_w: float = 0.12
    time_constant_s: float = 8.0
    ambient_c: float = 30.0
    wobble: float = 0.01
    tick_s: float = 0.1
    sensor_period_s: float = 0.1
    sensor_window_s: float = 0.025
    sensor_gain: float = 1.0
    reset_at_s: float | None = None
    throttling: Throttling | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        chance = np.random.default_rng(self.seed)
        times = np.arange(int(self.duration_s / _STEP_S) + 1) * _STEP_S
        speed = np.zeros_like(times)
        for start, end in self.loads:
            speed[(times >= start) & (times < end)] = 1.0
        if self.throttling is not None:
            slow = (times >= self.throttling.start_s) & (times < self.throttling.end_s)
            speed[slow] *= self.throttling.factor
        # A slow random walk of the kernel's power, which no reading can tell from the truth.
        rough = chance.normal(size=int(self.duration_s / 0.05) + 2)
        smooth = lfilter([0.1], [1, -0.9], rough) * self.wobble * 2
        kernel = self.kernel_w * (
            1 + np.interp(times, np.arange(smooth.size) * 0.05, smooth, right=smooth[-1])
        )
        drawn = self.idle_w + speed * kernel
        # dT/dt = (R (drawn + leakage (T - T_idle)) - (T - T_ambient)) / tau, linear in T.
        base_c = self.ambient_c + self.resistance_c_per_w * self.idle_w
        pull = 1 - self.resistance_c_per_w * self.leakage_w_per_c
        rise_w = drawn - self.idle_w
        keep = 1 - pull * _STEP_S / self.time_constant_s
        gain = self.resistance_c_per_w * _STEP_S / self.time_constant_s
        temp = base_c + lfilter([0.0, gain], [1, -keep], rise_w)
        power = drawn + self.leakage_w_per_c * (temp - base_c)
        for name, value in (
            ("_times", times),
            ("_power", power),
            ("_temp", temp),
            ("_energy", np.concatenate([[0.0], np.cumsum(power[:-1]) * _STEP_S * 1e3])),
            ("_calls", np.concatenate([[0.0], np.cumsum(speed[:-1]) * _STEP_S * 1e6])),
            ("_phase", chance.uniform(0, self.tick_s)),
            ("_sensor_phase", chance.uniform(0, self.sensor_period_s)),
            ("_noise", chance.normal(0, 0.003, size=int(self.duration_s / 0.02) + 2)),
        ):
            object.__setattr__(self, name, value)

    def power_at(self, time_s: float) -> float:
        """True watts."""
        return float(np.interp(time_s, self._times, self._power))  # type: ignore[attr-defined]

    def energy_mj(self, start_s: float, end_s: float) -> float:
        """True energy between two moments."""
        at = np.interp([start_s, end_s], self._times, self._energy)  # type: ignore[attr-defined]
        return float(at[1] - at[0])

    def calls_at(self, time_s: float) -> float:
        """Calls completed."""
        busy_us = np.interp(time_s, self._times, self._calls)  # type: ignore[attr-defined]
        return float(np.floor(busy_us / self.call_us))

    def temperature_c(self, time_s: float) -> float:
        return float(np.interp(time_s, self._times, self._temp))  # type: ignore[attr-defined]

    def counter_mj(self, time_s: float) -> int:
        """The counter as it was left by its last tick."""
        phase: float = self._phase  # type: ignore[attr-defined]
        tick = phase + np.floor((time_s - phase) / self.tick_s) * self.tick_s
        since = 0.0
        if self.reset_at_s is not None and tick >= self.reset_at_s:
            since = self.reset_at_s
        start_mj = 0 if since else 123_456_789
        return start_mj + int(self.energy_mj(since, max(tick, since)))

    def sensor_w(self, time_s: float) -> float:
        """The mean of the last sensor window that has ended, with noise."""
        phase: float = self._sensor_phase  # type: ignore[attr-defined]
        index = int(np.floor((time_s - phase - self.sensor_window_s) / self.sensor_period_s))
        start = max(phase + index * self.sensor_period_s, 0.0)
        end = start + self.sensor_window_s
        noise = self._noise[index % len(self._noise)]  # type: ignore[attr-defined]
        mean_w = self.energy_mj(start, end) / self.sensor_window_s / 1e3
        return float(mean_w * (1 + noise) * self.sensor_gain)

    def average_w(self, time_s: float) -> float:
        """The mean over the last second."""
        start = max(time_s - 1.0, 0.0)
        return self.energy_mj(start, time_s) / max(time_s - start, _STEP_S) / 1e3

    def throttle_bits(self, time_s: float) -> int:
        event = self.throttling
        return event.bits if event and event.start_s <= time_s < event.end_s else 0


class SimulatedNvml:
    """Answers like the module `pynvml` for one GPU, at the time its clock shows.

    Every call takes a little of that time. `broken` maps the names of functions and fields to the
    error they raise.
    """

    NVMLError = pynvml.NVMLError
    NVMLError_NotSupported = pynvml.NVMLError_NotSupported
    NVMLError_NoPermission = pynvml.NVMLError_NoPermission
    NVML_SUCCESS = pynvml.NVML_SUCCESS
    NVML_FI_DEV_POWER_INSTANT = pynvml.NVML_FI_DEV_POWER_INSTANT
    NVML_FI_DEV_POWER_AVERAGE = pynvml.NVML_FI_DEV_POWER_AVERAGE
    NVML_VALUE_TYPE_UNSIGNED_INT = pynvml.NVML_VALUE_TYPE_UNSIGNED_INT
    NVML_VALUE_TYPE_UNSIGNED_LONG_LONG = pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
    NVML_TEMPERATURE_GPU = pynvml.NVML_TEMPERATURE_GPU
    NVML_CLOCK_SM = pynvml.NVML_CLOCK_SM
    NVML_CLOCK_MEM = pynvml.NVML_CLOCK_MEM

    def __init__(
        self, gpu: SimulatedGpu, clock: VirtualClock, broken: dict[str, Exception] | None = None
    ) -> None:
        self.gpu, self.clock, self.broken = gpu, clock, broken or {}
        self.open = 0

    def nvmlInit(self) -> None:
        self._ask("nvmlInit")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self._ask("nvmlDeviceGetHandleByUUID")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int:
        return self.gpu.counter_mj(self._ask("nvmlDeviceGetTotalEnergyConsumption"))

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:
        return round(self.gpu.average_w(self._ask("nvmlDeviceGetPowerUsage")) * 1e3)

    def nvmlDeviceGetFieldValues(self, handle: Any, fields: list[int]) -> list[Any]:
        return [self._field(field) for field in fields]

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int:
        return round(self.gpu.temperature_c(self._ask("nvmlDeviceGetTemperature")))

    def nvmlDeviceGetClockInfo(self, handle: Any, kind: int) -> int:
        now_s = self._ask("nvmlDeviceGetClockInfo")
        if kind == self.NVML_CLOCK_MEM:
            return 2619
        return 1200 if self.gpu.throttle_bits(now_s) else 1755

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any) -> int:
        return self.gpu.throttle_bits(self._ask("nvmlDeviceGetCurrentClocksEventReasons"))

    def _field(self, field: int) -> Any:
        now_s = self._ask("nvmlDeviceGetFieldValues")
        instant = field == self.NVML_FI_DEV_POWER_INSTANT
        name = "NVML_FI_DEV_POWER_INSTANT" if instant else "NVML_FI_DEV_POWER_AVERAGE"
        error = self.broken.get(name)
        watts = self.gpu.sensor_w(now_s) if instant else self.gpu.average_w(now_s)
        return SimpleNamespace(
            nvmlReturn=self.NVML_SUCCESS if error is None else error.value,  # type: ignore[attr-defined]
            valueType=self.NVML_VALUE_TYPE_UNSIGNED_INT,
            value=SimpleNamespace(uiVal=round(watts * 1e3)),
        )

    def _ask(self, name: str) -> float:
        if name in self.broken:
            raise self.broken[name]
        self.clock.advance(5e-5)
        return self.clock.now_s


PHASES = Phases(idle_s=3.0, window_s=5.0)
_BEGIN_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A trial as the sampler and the workload would leave it, and the GPU it was made on."""

    gpu: SimulatedGpu
    trace: Trace
    progress: Progress
    idle_before: Window
    idle_after: Window

    def arguments(self) -> tuple[Trace, Progress, Window, Window]:
        """For `read_trial`."""
        return self.trace, self.progress, self.idle_before, self.idle_after

    def without_samples(self, start_s: float, end_s: float) -> Recorded:
        """As if the sampler had been silent from `start_s` to `end_s`."""
        kept = (self.trace.time_s < start_s) | (self.trace.time_s > end_s)
        columns = {f.name: getattr(self.trace, f.name)[kept] for f in dataclasses.fields(Trace)}
        return dataclasses.replace(self, trace=Trace(**columns))


def record(
    *, phases: Phases = PHASES, broken: dict[str, Exception] | None = None, **gpu: Any
) -> Recorded:
    """Run one trial on a simulated GPU with the properties `gpu`, by the real sampling loop."""
    chance = np.random.default_rng(gpu.get("seed", 0) + 1000)
    idle_before = Window(_BEGIN_S, _BEGIN_S + phases.idle_s)
    heat_s = idle_before.end_s + chance.uniform(0, 0.1)
    start_s = heat_s + phases.preheat_s
    end_s = start_s + phases.load_s
    idle_after = Window(end_s + 0.05, end_s + 0.05 + phases.idle_s)
    device = SimulatedGpu(loads=((heat_s, end_s),), duration_s=idle_after.end_s + _BEGIN_S, **gpu)
    clock = VirtualClock()
    samples: list[Sample] = []

    def wait(seconds: float) -> bool:
        # A scheduler wakes late.
        clock.advance(seconds + chance.exponential(3e-4))
        return clock.now_s > idle_after.end_s

    reader = NvmlReader(SimulatedNvml(device, clock, broken), "GPU-0")
    sample(reader, samples.append, now=clock.now, wait=wait)
    moments = np.arange(start_s, end_s, 0.02)
    calls = [device.calls_at(moment) for moment in moments]
    # The host sees a step complete a little after it did.
    seen = moments + chance.uniform(0, 5e-4, size=moments.size)
    return Recorded(
        gpu=device,
        trace=Trace.of(samples),
        progress=Progress(seen, np.array(calls)),
        idle_before=idle_before,
        idle_after=idle_after,
    )
