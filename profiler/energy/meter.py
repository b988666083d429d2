"""Power of the whole machine from a wall meter's CSV of (Unix time in s, watts)."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np

from costprof.core.errors import InputError
from costprof.profiler.energy.trace import Sample, Trace
from costprof.profiler.energy.windows import Rejected
from costprof.profiler.energy.workload import Clocks
from costprof.profiler.results import Floats

_NOTHING = "no energy was taken from it"
_FORMAT = "write one line a reading: Unix time in s, watts"
_EARLIEST_S, _LATEST_S = 1e9, 1e11  # 2001; after it, milliseconds
_MOST_W = 1e5
_CLOCK_STEP_S = 0.05


@dataclasses.dataclass(frozen=True, slots=True)
class MeterReadings:
    """Readings of a meter, both [n], ascending in time."""

    unix_s: Floats
    watts: Floats

    def overlaps(self, start: Clocks, end: Clocks) -> bool:
        """Return whether any reading lies from `start` to `end`."""
        return bool(((self.unix_s >= start.unix_s) & (self.unix_s <= end.unix_s)).any())

    def on(self, start: Clocks, end: Clocks) -> Trace:
        """Return the readings from `start` to `end` as a trace on the monotonic clock.

        The clocks were read together at both moments; between them the difference is interpolated.

        Raises:
            Rejected: the machine's clock was stepped in between.
        """
        before, after = start.unix_s - start.monotonic_s, end.unix_s - end.monotonic_s
        if abs(after - before) > _CLOCK_STEP_S:
            raise Rejected(
                f"the machine's clock was set by {after - before:+.2f} s during the trial, "
                "so the meter's times do not fit"
            )
        inside = (self.unix_s >= start.unix_s) & (self.unix_s <= end.unix_s)
        unix_s = self.unix_s[inside]
        offset = np.interp(unix_s, [start.unix_s, end.unix_s], [before, after])
        return Trace.of(
            Sample(time_s=float(time), power_w=float(power))
            for time, power in zip(unix_s - offset, self.watts[inside], strict=True)
        )


def read_meter(path: Path) -> MeterReadings:
    """Read a meter's CSV; commas, semicolons or tabs, a header line and further columns are let be.

    Raises:
        InputError: naming the first line at fault.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror})", _NOTHING, "check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name} is not text", _NOTHING, _FORMAT) from error
    readings: list[tuple[float, float]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        reading = _numbers(line)
        if reading is None:
            if number == 1:
                continue  # a header
            raise _fault(path, number, f"{line.strip()[:60]!r} is not two numbers", _FORMAT)
        _check(path, number, reading, readings[-1][0] if readings else None)
        readings.append(reading)
    if len(readings) < 2:
        raise InputError(f"{path.name} holds {len(readings)} readings", _NOTHING, _FORMAT)
    table = np.array(readings)
    return MeterReadings(table[:, 0], table[:, 1])


def _numbers(line: str) -> tuple[float, float] | None:
    delimiter = next((mark for mark in (";", "\t") if mark in line), ",")
    (cells,) = csv.reader([line], delimiter=delimiter)
    try:
        return float(cells[0]), float(cells[1])
    except (ValueError, IndexError):
        return None


def _check(path: Path, number: int, reading: tuple[float, float], previous_s: float | None) -> None:
    time_s, watts = reading
    if not _EARLIEST_S <= time_s <= _LATEST_S:  # also of NaN
        unit = "milliseconds" if time_s > _LATEST_S else "no Unix time"
        raise _fault(path, number, f"time {time_s:.10g} looks like {unit}", _FORMAT)
    if not 0 <= watts <= _MOST_W:
        raise _fault(path, number, f"{watts:g} W is no power of a machine", "give watts")
    if previous_s is not None and time_s <= previous_s:
        raise _fault(
            path, number, f"time {time_s:.10g} is not after {previous_s:.10g}", "sort it by time"
        )


def _fault(path: Path, number: int, fact: str, way_out: str) -> InputError:
    return InputError(f"{path.name}, line {number}: {fact}", _NOTHING, way_out)
