"""What was recorded during one trial: readings of the device, and how far the workload had come.

All times are seconds of the machine's monotonic clock, which its processes share.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from costprof.profiler.results import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One poll of a device; None is what was not asked in this poll, or is not offered.

    Attributes:
        time_s: When the counter was read.
        counter_mj: Total-energy counter.
        power_w: Instantaneous power (of a wall meter: what it wrote).
        power_average_w: Power as the driver averages it, over about a second.
        temp_c, sm_clock_mhz, mem_clock_mhz: As the driver says.
        throttle: Bits of `throttle.REASONS`.
    """

    time_s: float
    counter_mj: float | None = None
    power_w: float | None = None
    power_average_w: float | None = None
    temp_c: float | None = None
    sm_clock_mhz: float | None = None
    mem_clock_mhz: float | None = None
    throttle: int | None = None


COLUMNS = tuple(field.name for field in dataclasses.fields(Sample))


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Samples in order of time, as one array [samples] a column, NaN where a sample has None."""

    time_s: Floats
    counter_mj: Floats
    power_w: Floats
    power_average_w: Floats
    temp_c: Floats
    sm_clock_mhz: Floats
    mem_clock_mhz: Floats
    throttle: Floats

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> Trace:
        """Return the trace of `samples`."""
        rows = [dataclasses.astuple(sample) for sample in samples]
        table = np.array(rows, dtype=np.float64).reshape(-1, len(COLUMNS))
        return cls(**{name: table[:, i] for i, name in enumerate(COLUMNS)})

    def between(self, start_s: float, end_s: float) -> Trace:
        """Return the samples at `start_s` … `end_s`, both included."""
        inside = (self.time_s >= start_s) & (self.time_s <= end_s)
        return Trace(**{name: getattr(self, name)[inside] for name in COLUMNS})

    def known(self, name: str) -> tuple[Floats, Floats]:
        """Return times and values of the samples that have column `name`."""
        values = getattr(self, name)
        there = ~np.isnan(values)
        return self.time_s[there], values[there]


@dataclass(frozen=True)
class Progress:
    """Calls completed by the workload at some times, both [marks] and ascending; the load begins
    at the first mark and ends at the last."""

    time_s: Floats
    calls: Floats

    def calls_at(self, time_s: float) -> float:
        """Return the calls completed at `time_s`, interpolated between marks."""
        return float(np.interp(time_s, self.time_s, self.calls))


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of time, in seconds of the monotonic clock."""

    start_s: float
    end_s: float


HEADER = ",".join(COLUMNS) + "\n"


def sample_line(sample: Sample) -> str:
    """Return `sample` as a line of a trace file."""
    # A counter of months has more digits than `:g` would keep.
    cells = ["" if value is None else f"{value:.15g}" for value in dataclasses.astuple(sample)]
    return ",".join(cells) + "\n"


def read_trace(path: Path) -> Trace:
    """Read a trace file; a line that was being written when its process died is left out."""
    text = path.read_text(encoding="ascii") if path.is_file() else ""
    whole = text[: text.rfind("\n") + 1].splitlines()[1:]
    rows = [[float(cell or math.nan) for cell in line.split(",")] for line in whole]
    table = np.array(rows, dtype=np.float64).reshape(-1, len(COLUMNS))
    return Trace(**{name: table[:, i] for i, name in enumerate(COLUMNS)})
