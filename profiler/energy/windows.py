"""Energy of one call from a recorded trial, or the reason why the trial is rejected.

The counter stands still for 20 to 100 ms at a time, so a window begins and ends at *ticks*, the
moments it moved, and the calls between them come from the progress marks:

    E = (counter at the last tick - counter at the first) / calls in between

Beside it stands the integral of the instantaneous power over the same window; the two see the
same energy in different ways, and a trial in which they disagree is rejected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from costprof.profiler.energy.throttle import POWER_CAP, SLOWED, names
from costprof.profiler.energy.trace import Progress, Trace, Window
from costprof.profiler.results import Floats

PowerSource = Literal["nvml_integral", "external_meter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a trial must satisfy.

    Attributes:
        drop_s: Left out after the start of a load or of an idle stretch: readings still carry
            what was before.
        min_window_s, min_idle_s: Shortest window of the load and of idling.
        min_ticks, min_readings: Fewest counter ticks, or power readings without a counter.
        max_edge_gap_s: Longest time between the two polls that a tick at an edge lies between.
        max_gap_s: Longest silence of the readings within a window.
        max_disagreement: Of counter and integral, relative to the counter.
        max_clock_change: Of the SM clock within the window, (largest - smallest) / largest.
        min_marks: Fewest progress marks within a window.
    """

    drop_s: float = 1.0
    min_window_s: float = 2.0
    min_idle_s: float = 1.0
    min_ticks: int = 10
    min_readings: int = 4
    max_edge_gap_s: float = 0.03
    max_gap_s: float = 0.5
    max_disagreement: float = 0.03
    max_clock_change: float = 0.05
    min_marks: int = 5


NVML_RULES = Rules()
METER_RULES = Rules(max_gap_s=2.5)
"""Wall meters write about once a second."""


class Rejected(Exception):
    """Why a trial does not count, in one line."""


def read_trial(
    trace: Trace,
    progress: Progress,
    idle_before: Window | None,
    idle_after: Window | None,
    *,
    power_source: PowerSource = "nvml_integral",
    rules: Rules = NVML_RULES,
) -> dict[str, Any]:
    """Return what the trial shows, by columns of `schema.ENERGY`.

    `status` is "accepted", or "rejected" with the `reason`; columns that were known before the
    rejection are filled all the same. `power_source` says what `trace.power_w` is, for trials
    without a counter.
    """
    found: dict[str, Any] = {"status": "accepted", "note": None}
    try:
        _read_load(found, trace, progress, power_source, rules)
        _read_idle(found, trace, idle_before, idle_after, rules)
    except Rejected as rejection:
        found |= {"status": "rejected", "reason": str(rejection)}
    return found


@dataclass(frozen=True, slots=True)
class _Energy:
    """Energy between two moments, by counter if there is one."""

    window: Window
    counter_mj: float | None
    integral_mj: float | None
    ticks: int | None

    @property
    def mj(self) -> float:
        value = self.integral_mj if self.counter_mj is None else self.counter_mj
        assert value is not None
        return value

    @property
    def seconds(self) -> float:
        return self.window.end_s - self.window.start_s


def _read_load(
    found: dict[str, Any],
    trace: Trace,
    progress: Progress,
    power_source: PowerSource,
    rules: Rules,
) -> None:
    if progress.time_s.size < 2:
        raise Rejected("the workload left no progress marks")
    whole = Window(float(progress.time_s[0]) + rules.drop_s, float(progress.time_s[-1]))
    _require_length(whole, rules.min_window_s, "the load")
    energy = _energy(trace, whole, rules, "the window")
    window, inside = energy.window, trace.between(energy.window.start_s, energy.window.end_s)
    found["source"] = power_source if energy.counter_mj is None else "nvml_counter"
    found |= {
        "window_s": energy.seconds,
        "ticks": energy.ticks,
        "counter_mj": energy.counter_mj,
        "integral_mj": energy.integral_mj,
        "power_mean_w": energy.mj / energy.seconds / 1e3,
        "power_peak_w": _largest(inside.power_w),
        **_conditions(inside),
    }
    marks = (progress.time_s >= window.start_s) & (progress.time_s <= window.end_s)
    if int(marks.sum()) < rules.min_marks:
        raise Rejected(
            f"{int(marks.sum())} progress marks in the window, fewer than {rules.min_marks}"
        )
    calls = progress.calls_at(window.end_s) - progress.calls_at(window.start_s)
    if calls <= 0:
        raise Rejected("the workload completed no call within the window")
    found |= {
        "calls": calls,
        "call_us": energy.seconds / calls * 1e6,
        "energy_mj": energy.mj / calls,
    }
    _cross_check(found, energy, rules)
    _check_clocks(found, inside, rules)


def _read_idle(
    found: dict[str, Any],
    trace: Trace,
    before: Window | None,
    after: Window | None,
    rules: Rules,
) -> None:
    reasons = []
    for name, window in (("before", before), ("after", after)):
        try:
            found[f"idle_w_{name}"] = _idle_w(trace, window, rules, name)
        except Rejected as reason:
            reasons.append(str(reason))
    before_w, after_w = found.get("idle_w_before"), found.get("idle_w_after")
    if before_w and after_w is not None:
        found["idle_drift"] = after_w / before_w - 1.0
    # Before the load the device is as cool as at every other trial. What heat adds to leakage
    # is the load's doing, and charged to it.
    idle_w = after_w if before_w is None else before_w
    if idle_w is None:
        raise Rejected(f"idle power is not known ({'; '.join(reasons)})")
    idle_mj = idle_w * found["call_us"] * 1e-3
    found |= {"energy_idle_mj": idle_mj, "energy_active_mj": found["energy_mj"] - idle_mj}
    if found["energy_active_mj"] <= 0:
        raise Rejected(
            f"the load drew {found['power_mean_w']:.1f} W, no more than idle ({idle_w:.1f} W)"
        )


def _idle_w(trace: Trace, window: Window | None, rules: Rules, name: str) -> float:
    if window is None:
        raise Rejected(f"no idle stretch {name} the load")
    settled = Window(window.start_s + rules.drop_s, window.end_s)
    _require_length(settled, rules.min_idle_s, f"the idle stretch {name}")
    energy = _energy(trace, settled, rules, f"the idle stretch {name}", idle=True)
    return energy.mj / energy.seconds / 1e3


def _require_length(window: Window, least_s: float, where: str) -> None:
    length_s = max(window.end_s - window.start_s, 0.0)
    if length_s < least_s:
        raise Rejected(f"{length_s:.2f} s of {where} can be used, fewer than {least_s:g} s")


def _energy(
    trace: Trace, whole: Window, rules: Rules, where: str, *, idle: bool = False
) -> _Energy:
    """Energy of the longest window within `whole` whose edges are known well."""
    inside = trace.between(whole.start_s, whole.end_s)
    _require_no_gap(inside, whole, rules, where)
    times, counter = inside.known("counter_mj")
    if times.size:
        return _by_counter(inside, times, counter, rules, where, idle=idle)
    power = _power(inside)
    if power is None or power[0].size < rules.min_readings:
        count = 0 if power is None else power[0].size
        raise Rejected(f"{count} power readings in {where}, fewer than {rules.min_readings}")
    return _Energy(whole, None, _integral_mj(*power, whole), None)


def _by_counter(
    inside: Trace, times: Floats, counter: Floats, rules: Rules, where: str, *, idle: bool
) -> _Energy:
    steps = np.diff(counter)
    if (steps < 0).any():
        at = int(np.argmax(steps < 0))
        raise Rejected(
            f"the energy counter went down from {counter[at]:.0f} to {counter[at + 1]:.0f} mJ in "
            f"{where}: it was reset or wrapped"
        )
    after = np.flatnonzero(steps > 0) + 1
    gaps = times[after] - times[after - 1]
    sharp = after[gaps <= rules.max_edge_gap_s]
    least = max(rules.min_ticks // 2, 2) if idle else rules.min_ticks
    if sharp.size < least:
        raise Rejected(
            f"the energy counter was seen to tick {sharp.size} times in {where}, fewer than {least}"
        )
    first, last = int(sharp[0]), int(sharp[-1])
    # The counter moved somewhere between two polls: in the middle, to half their distance.
    edges = (times[[first, last]] + times[[first - 1, last - 1]]) / 2
    window = Window(float(edges[0]), float(edges[1]))
    _require_length(window, rules.min_idle_s / 2 if idle else rules.min_window_s, where)
    power = _power(inside)
    return _Energy(
        window,
        float(counter[last] - counter[first]),
        None if power is None else _integral_mj(*power, window),
        int(after.size),
    )


def _require_no_gap(inside: Trace, whole: Window, rules: Rules, where: str) -> None:
    moments = np.concatenate([[whole.start_s], inside.time_s, [whole.end_s]])
    silence_s = float(np.diff(moments).max())
    if silence_s > rules.max_gap_s:
        raise Rejected(
            f"there are no readings for {silence_s:.2f} s of {where} "
            f"(allowed: {rules.max_gap_s:g} s)"
        )


def _power(inside: Trace) -> tuple[Floats, Floats] | None:
    """Times and watts: instantaneous where offered, else the driver's average."""
    for name in ("power_w", "power_average_w"):
        times, watts = inside.known(name)
        if times.size:
            return times, watts
    return None


def _integral_mj(times: Floats, watts: Floats, window: Window) -> float:
    """Trapezoid integral over `window`; the first and last reading within it hold to its edges."""
    within = (times > window.start_s) & (times < window.end_s)
    moments = np.concatenate([[window.start_s], times[within], [window.end_s]])
    at = np.interp(moments, times, watts)
    return float(((at[1:] + at[:-1]) / 2 * np.diff(moments)).sum()) * 1e3


def _cross_check(found: dict[str, Any], energy: _Energy, rules: Rules) -> None:
    if energy.counter_mj is None or energy.integral_mj is None:
        _add_note(found, "not cross-checked: only one of counter and power can be read")
        return
    found["disagreement"] = energy.integral_mj / energy.counter_mj - 1.0
    if abs(found["disagreement"]) > rules.max_disagreement:
        raise Rejected(
            f"counter and power integral disagree by {found['disagreement']:+.1%}, "
            f"more than {rules.max_disagreement:.0%}"
        )


def _check_clocks(found: dict[str, Any], inside: Trace, rules: Rules) -> None:
    _, bits = inside.known("throttle")
    reasons = int(np.bitwise_or.reduce(bits.astype(np.int64))) if bits.size else 0
    if reasons & SLOWED:
        raise Rejected(f"the device was slowed down ({names(reasons & SLOWED)})")
    capped = bool(reasons & POWER_CAP)
    if capped:
        _add_note(found, "at the power limit for part of the window at least")
    _, clocks = inside.known("sm_clock_mhz")
    if clocks.size and not capped:
        change = float(np.ptp(clocks) / clocks.max())
        if change > rules.max_clock_change:
            raise Rejected(
                f"the SM clock moved between {clocks.min():.0f} and {clocks.max():.0f} MHz "
                "within the window"
            )


def _conditions(inside: Trace) -> dict[str, Any]:
    """Temperature and clocks at both edges, throttle reasons of the whole window."""
    found: dict[str, Any] = {}
    found |= _ends(inside, "temp_c", "temp_{}_c")
    found |= _ends(inside, "sm_clock_mhz", "sm_clock_{}_mhz")
    found |= _ends(inside, "mem_clock_mhz", "mem_clock_{}_mhz")
    _, bits = inside.known("throttle")
    if bits.size:
        found["throttle_reasons"] = names(int(np.bitwise_or.reduce(bits.astype(np.int64))))
    return found


def _ends(inside: Trace, column: str, name: str) -> dict[str, Any]:
    _, values = inside.known(column)
    if not values.size:
        return {}
    return {name.format("before"): float(values[0]), name.format("after"): float(values[-1])}


def _largest(values: Floats) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.max()) if known.size else None


def _add_note(found: dict[str, Any], note: str) -> None:
    found["note"] = note if found["note"] is None else f"{found['note']}; {note}"
