"""Choose which scenarios of a sweep to measure next, and say when enough were.

How it chooses. Each curve begins with its ends and middle. From then on whichever scenarios lower
the summed expected error of all most are next (`costprof.costmodel.doubt`), and every fourth is
drawn by lot instead.

When it stops. When the expected error of what was not measured is at most the target, and so is
the error at the scenarios drawn by lot, each predicted without its own measurement: the model's
word alone is not taken for it. Where only those are missing, lots are all that is drawn.

Pure functions of the measurements and a seed: the same rows lead to the same choice, so an
interrupted sweep goes on by choosing again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from costprof.costmodel.doubt import Doubt, most_telling
from costprof.costmodel.features import Array, Subject
from costprof.costmodel.roofline import fit_roofline
from costprof.costmodel.sweep_process import CurveProcess, Readings

Stop = Literal["target error reached", "budget used", "all measured"]
At = tuple[int, int]
"""A curve and one of its scenarios, by index."""

START = 3
"""Scenarios each curve begins with."""

CHECKS = 5
"""Scenarios drawn by lot that have to confirm an expected error, where there are so many."""

_LOT_EVERY = 4
_TYPICAL_NOISE = 0.01**2
_JUDGED = 8.0  # as many left-out scenarios weigh as much as the process's own word on its errors
_PER_STD = (2.0 / np.pi) ** 0.5


@dataclass(frozen=True, kw_only=True)
class SweepCurve(Subject):
    """Scenarios of one kernel on one expert or layer, the same cache state and tile config.

    `x` [n, d] says where they lie: log2 tokens; of layers also log2 of the active experts and of
    the busiest one's tokens. `flops` and `bytes` [n] are their compulsory work.
    """

    x: Array
    flops: Array
    bytes: Array

    def start(self) -> list[int]:
        """Return the positions of the scenarios to begin with: the ends, then the middle."""
        order = [int(self.x.sum(axis=1).argmax())]
        while len(order) < min(START, len(self.x)):
            apart = np.linalg.norm(self.x[:, None, :] - self.x[None, order, :], axis=2)
            order.append(int(apart.min(axis=1).argmax()))
        return order


@dataclass(frozen=True)
class Reading:
    """A measurement: median latency and variance of its logarithm; None where it failed."""

    latency_us: float | None
    variance: float = 0.0


@dataclass(frozen=True)
class SweepChoice:
    """What to do next.

    Attributes:
        next: Scenarios to measure; empty when done.
        stopped: Why it is done, None where it is not.
        expected_error: Mean E|log error| at what was not measured; None before the model can say.
        check_error: Mean |log error| at the `checks` scenarios drawn by lot and measured, each
            predicted without itself; None without any.
    """

    next: tuple[At, ...]
    stopped: Stop | None
    expected_error: float | None = None
    check_error: float | None = None
    checks: int = 0


@dataclass(frozen=True)
class _Part:
    """The measured scenarios of a curve, as a roofline is fitted to them."""

    ceiling: str
    cache_state: str
    measured_work: tuple[Array, Array]
    p50: Array
    variance: Array


def choose_scenarios(
    curves: Sequence[SweepCurve],
    measured: Mapping[At, Reading],
    *,
    budget: int,
    batch: int,
    target: float | None = None,
    seed: int = 0,
) -> SweepChoice:
    """Return what to measure next.

    Args:
        curves: All scenarios of the sweep.
        measured: What was measured so far, failures included.
        budget: Measurements allowed, failures included.
        batch: How many to choose at once.
        target: Mean |log error| at which to stop.
        seed: Of the lots.
    """
    every = [(c, p) for c, curve in enumerate(curves) for p in range(len(curve.x))]
    begin = _start(curves)
    left = budget - len(measured)
    missing = [at for at in begin if at not in measured][: max(left, 0)]
    if missing:
        return SweepChoice(tuple(missing), None)
    lots = _lots(every, begin, seed)
    unmeasured = [at for at in every if at not in measured]
    if not unmeasured:
        return SweepChoice((), "all measured")
    with threadpool_limits(limits=1):  # small matrices, and sums always in the same order
        doubts, errors = _model(curves, measured)
    expected = float(np.mean([doubts[c].expected_errors()[p] for c, p in unmeasured]))
    checks = [at for at in _measured_first(lots, measured) if at in errors]
    check = float(np.mean([errors[at] for at in checks])) if checks else None
    enough = len(checks) >= min(CHECKS, len(lots)) and check is not None
    stopped: Stop | None = None
    if left <= 0:
        stopped = "budget used"
    elif target is not None and enough and max(expected, check or 0.0) <= target:
        stopped = "target error reached"
    chosen: list[At] = []
    if stopped is None:
        number = min(batch, left, len(unmeasured))
        by_lot = -(-number // _LOT_EVERY)
        if target is not None and expected <= target and not enough:
            by_lot = min(number, CHECKS - len(checks))  # all that is missing is confirmation
        chosen = [at for at in lots if at not in measured][:by_lot]
        for curve, position in chosen:
            doubts[curve].measure(position)
        chosen += most_telling(doubts, number - len(chosen))
    return SweepChoice(tuple(chosen), stopped, expected, check, len(checks))


def _start(curves: Sequence[SweepCurve]) -> list[At]:
    """Return every curve's first scenario, then every curve's second, ..."""
    each = [curve.start() for curve in curves]
    return [
        (c, positions[turn])
        for turn in range(START)
        for c, positions in enumerate(each)
        if turn < len(positions)
    ]


def _lots(every: list[At], begin: list[At], seed: int) -> list[At]:
    """Return the scenarios that no curve begins with, in an order drawn by lot."""
    rest = [at for at in every if at not in set(begin)]
    return [rest[i] for i in np.random.default_rng(seed).permutation(len(rest))]


def _measured_first(lots: list[At], measured: Mapping[At, Reading]) -> list[At]:
    """Return the lots up to the first not measured: a sample that no doubt has chosen."""
    for number, at in enumerate(lots):
        if at not in measured:
            return lots[:number]
    return lots


def _model(
    curves: Sequence[SweepCurve], measured: Mapping[At, Reading]
) -> tuple[list[Doubt], dict[At, float]]:
    """Return each curve's doubt, and |log error| of each measured scenario left out."""
    ran: dict[int, list[int]] = {}
    for c, position in sorted(measured):
        if measured[c, position].latency_us is not None:
            ran.setdefault(c, []).append(position)
    readings: dict[int, Readings] = {}
    processes: dict[int, CurveProcess] = {}
    for layers in (False, True):
        mine = [c for c in sorted(ran) if (curves[c].op == "layer") == layers]
        if mine:
            found = _readings(curves, measured, {c: ran[c] for c in mine})
            readings |= found
            processes |= dict.fromkeys(mine, CurveProcess.fit(list(found.values())))
    left_out = {c: processes[c].left_out(each) for c, each in readings.items()}
    scores = [np.abs(error / std) for c, (error, std) in left_out.items() if len(ran[c]) > 1]
    factor = _factor(np.concatenate(scores) if scores else np.empty(0))
    doubts = [
        _doubt(curve, processes.get(c, _any(processes, curve)), measured, c, factor)
        for c, curve in enumerate(curves)
    ]
    errors = {
        (c, position): abs(float(left_out[c][0][i]))
        for c, positions in ran.items()
        if len(positions) > 1
        for i, position in enumerate(positions)
    }
    return doubts, errors


def _readings(
    curves: Sequence[SweepCurve], measured: Mapping[At, Reading], ran: Mapping[int, list[int]]
) -> dict[int, Readings]:
    parts = {}
    for c, at in ran.items():
        curve = curves[c]
        found = [measured[c, position] for position in at]
        parts[c] = _Part(
            ceiling=curve.ceiling,
            cache_state=curve.cache_state,
            measured_work=(curve.flops[at], curve.bytes[at]),
            p50=np.array([each.latency_us for each in found], dtype=np.float64),
            variance=np.array([each.variance for each in found]),
        )
    roofline = fit_roofline(list(parts.values()))
    return {
        c: Readings(
            x=curves[c].x[ran[c]],
            y=np.log(part.p50 / roofline.latency_us(curves[c], *part.measured_work)),
            noise=part.variance,
        )
        for c, part in parts.items()
    }


def _factor(scores: npt.NDArray[np.float64]) -> float:
    """Return how many times larger errors are than the process says, from its left-out ones."""
    return float((scores.sum() / _PER_STD + _JUDGED) / (len(scores) + _JUDGED))


def _any(processes: Mapping[int, CurveProcess], curve: SweepCurve) -> CurveProcess:
    """Return the process for a curve of which nothing ran."""
    alike = [p for p in processes.values() if len(p.length) == curve.x.shape[1]]
    return alike[0] if alike else CurveProcess.usual(curve.x.shape[1])


def _doubt(
    curve: SweepCurve,
    process: CurveProcess,
    measured: Mapping[At, Reading],
    index: int,
    factor: float,
) -> Doubt:
    n = len(curve.x)
    mine = {p: measured[index, p] for p in range(n) if (index, p) in measured}
    noise = np.full(n, _TYPICAL_NOISE)
    known = [reading.variance for reading in mine.values() if reading.latency_us is not None]
    if known:
        noise[:] = np.median(known)
    doubt = Doubt(
        lambda positions: process.covariance(curve.x, curve.x[positions]),
        np.full(n, process.variance()),
        noise + process.luck,
        weight=factor,
    )
    for position, reading in mine.items():
        if reading.latency_us is None:
            doubt.rule_out(position)
        else:
            doubt.measure(position)
    return doubt
