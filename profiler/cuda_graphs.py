"""Time calls from inside a CUDA graph, so that the host's launching hides in no figure.

In decode an expert's kernels are shorter than the host takes to launch them, and serving engines
replay graphs for that reason. Events around one replay of one call would still hold the launch of
the graph itself (microseconds, as long as the call). So one graph holds the calls on all copies of
the weights, in rotation, as often as makes a replay last half a millisecond; the replays are queued
ahead of the device, and a sample is the time of one replay divided by its calls. A sample is thus
a mean over `calls_per_sample` consecutive calls: its median is that of a call, its quantiles are
narrower than those of single calls would be.

Generated scripts import this. It needs a GPU to run and none to be imported.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

Call = Callable[[], object]

_MIN_REPLAY_US = 500.0
_MAX_CALLS = 4096
_UPLOAD_REPLAYS = 3
_WAITS = "synchronizing CUDA operation"


class CannotCapture(Exception):
    """A call could not be captured, and torch's allocator still believes that it is capturing.

    A process in that state goes on to misreport memory: end it, and time the call by events in
    another one. The text says why, running out of memory told apart from all else.
    """


def waits_for_device(call: Call) -> bool:
    """Call once and say whether torch waited for the device in it: such a call fits no graph.

    Found out beforehand, because a capture that fails spoils the process. Waits that do not go
    through torch are not seen.

    Raises:
        RuntimeError: whatever else the call raises.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the mode is a prototype
            torch.cuda.set_sync_debug_mode("error")
        call()
    except RuntimeError as error:
        if _WAITS in str(error):
            return True
        raise
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def capture(calls: Sequence[Call], rotations: int = 1) -> torch.cuda.CUDAGraph:
    """Return a graph of `calls`, in turn, `rotations` times.

    The current stream must not be the default one, and every call must have run on it before:
    compilation, loading and workspaces belong before a capture.

    Raises:
        CannotCapture: see there.
    """
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    graph = torch.cuda.CUDAGraph()
    try:
        graph.capture_begin()
        for _ in range(rotations):
            for call in calls:
                call()  # Its output goes back to the graph's pool, for the next one to use.
        graph.capture_end()
    except Exception as error:
        with contextlib.suppress(Exception):
            graph.capture_end()  # a stream that is left capturing takes no other work
        raise CannotCapture(_why(error)) from error
    return graph


def graph_times(
    calls: Sequence[Call], *, target_ms: float, min_repetitions: int, max_repetitions: int
) -> dict[str, Any]:
    """Time replays of the warm `calls`, one for each copy of the weights.

    Returns:
        `wall_us`, a call's microseconds by each replay; `calls_per_sample`; `measuring_s`.

    Raises:
        CannotCapture: see there.
    """
    graph = capture(calls)
    rotations = _rotations(_replays_us(graph, _UPLOAD_REPLAYS)[-1], len(calls))
    if rotations > 1:
        del graph
        graph = capture(calls, rotations)
    replay_us = _replays_us(graph, _UPLOAD_REPLAYS)[-1]
    count = math.ceil(target_ms * 1e3 / max(replay_us, 1e-3))
    count = min(max(count, min_repetitions), max_repetitions)
    began = time.perf_counter()
    replays_us = _replays_us(graph, count)
    measuring_s = time.perf_counter() - began
    per_sample = rotations * len(calls)
    return {
        "wall_us": [replay / per_sample for replay in replays_us],
        "calls_per_sample": per_sample,
        "measuring_s": measuring_s,
    }


def event_times(calls: Sequence[Call], count: int) -> dict[str, Any]:
    """Time `count` calls, each between two events: what a call costs that the host takes part in.

    Returns:
        `wall_us` of each call; `calls_per_sample`, 1; `measuring_s`.
    """
    began = time.perf_counter()
    wall_us = _between_events_us([calls[index % len(calls)] for index in range(count)])
    return {
        "wall_us": wall_us,
        "calls_per_sample": 1,
        "measuring_s": time.perf_counter() - began,
    }


def _why(error: Exception) -> str:
    """Say why a capture failed: the kind first, what torch said in brackets.

    >>> _why(RuntimeError("CUDA error: out of memory"))
    'memory ran out while it was captured (RuntimeError: CUDA error: out of memory)'
    """
    # Not every allocation is torch's own: the driver's fail as plain RuntimeErrors.
    memory = isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)
    kind = "memory ran out while it was captured" if memory else "its capture failed"
    said = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return f"{kind} ({said})"


def _rotations(replay_us: float, calls: int) -> int:
    """How many rotations through the copies make a replay long against its own launch.

    >>> _rotations(120.0, 12)
    5
    >>> _rotations(0.5, 1000)
    4
    >>> _rotations(9000.0, 2)
    1
    """
    wanted = math.ceil(_MIN_REPLAY_US / max(replay_us, 1e-3))
    return max(1, min(wanted, _MAX_CALLS // calls))


def _replays_us(graph: torch.cuda.CUDAGraph, count: int) -> list[float]:
    return _between_events_us([graph.replay] * count)


def _between_events_us(calls: Sequence[Call]) -> list[float]:
    # All are queued before any is waited for: the device never idles between two.
    event: Callable[..., Any] = torch.cuda.Event
    events = [(event(enable_timing=True), event(enable_timing=True)) for _ in calls]
    for call, (start, end) in zip(calls, events, strict=True):
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) * 1e3 for start, end in events]
