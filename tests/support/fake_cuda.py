"""A stand-in for `torch.cuda` that keeps time by a clock of its own, for machines without a GPU.

What is tested with it is the code around the device, which is the real one: what is captured,
replayed, divided and given up. A kernel costs what it says it costs, and nothing else takes time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch

LAUNCH_US = 3.0
"""What the launch of a graph adds to every replay."""


class Device:
    """State of the one fake device."""

    def __init__(self) -> None:
        self.now_us = 0.0
        self.graph: Graph | None = None
        self.sync_mode = "default"
        self.broken = False
        self.captures = 0

    def kernel(self, us: float) -> None:
        """Run a kernel of `us` microseconds, or record it."""
        if self.graph is not None:
            self.graph.us += us
        else:
            self.now_us += us

    def wait(self) -> None:
        """What `.tolist()` does on a GPU."""
        if self.sync_mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        if self.graph is not None:
            raise RuntimeError("operation not permitted when stream is capturing")

    def illegal_access(self) -> None:
        """After this nothing works any more."""
        self.broken = True
        self.synchronize()

    def synchronize(self) -> None:
        if self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")


DEVICE = Device()


class Graph:
    def __init__(self) -> None:
        self.us = 0.0

    def capture_begin(self) -> None:
        DEVICE.captures += 1
        DEVICE.graph = self

    def capture_end(self) -> None:
        if DEVICE.graph is None:
            raise RuntimeError("capture_end() called before capture_begin()")
        DEVICE.graph = None

    def replay(self) -> None:
        DEVICE.now_us += LAUNCH_US + self.us


class Event:
    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        self.at_us = 0.0

    def record(self) -> None:
        self.at_us = DEVICE.now_us

    def elapsed_time(self, later: Event) -> float:
        return (later.at_us - self.at_us) / 1e3


class Stream:
    def wait_stream(self, other: Stream) -> None: ...


@contextlib.contextmanager
def stream(_: Stream) -> Iterator[None]:
    yield


def set_sync_debug_mode(mode: str) -> None:
    DEVICE.sync_mode = mode


def install(monkeypatch: pytest.MonkeyPatch) -> Device:
    """Put the stand-in in place of `torch.cuda`'s functions and return a device at rest."""
    DEVICE.__init__()  # type: ignore[misc]
    for name, value in {
        "CUDAGraph": Graph,
        "Event": Event,
        "Stream": Stream,
        "stream": stream,
        "current_stream": Stream,
        "synchronize": DEVICE.synchronize,
        "empty_cache": lambda: None,
        "set_sync_debug_mode": set_sync_debug_mode,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return DEVICE
