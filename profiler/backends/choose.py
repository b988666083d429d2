"""Choose a backend by name, or the best one this machine has."""

from __future__ import annotations

import logging

from costprof.core.errors import CostprofError, InputError
from costprof.profiler.backends.base import Backend
from costprof.profiler.backends.nsys import NsysBackend
from costprof.profiler.backends.selftimed import inprocess_backend, torch_profiler_backend
from costprof.profiler.nsys.tool import find_nsys, require_nsys
from costprof.profiler.scenario import DeviceName

_log = logging.getLogger(__name__)

BACKENDS = ("auto", "nsys", "torch-profiler", "inprocess")


def choose_backend(name: str, device: DeviceName, max_repetitions: int) -> Backend:
    """Return the backend `name`, proven to work here.

    `auto` takes CUDA graphs on a GPU: profilers see calls launched one by one, with the host's gaps
    between their kernels. On a CPU it takes nsys where it is found and records ranges, else the
    clock, and says so.

    Raises:
        InputError: there is no such backend.
        ToolError: the one asked for cannot be used here.
    """
    if name == "nsys":
        backend: Backend = NsysBackend(require_nsys(), device, max_repetitions)
    elif name == "torch-profiler":
        backend = torch_profiler_backend()
    elif name == "inprocess":
        backend = inprocess_backend()
    elif name == "auto":
        return _best(device, max_repetitions)
    else:
        raise InputError(
            f"backend {name!r} is unknown",
            "nothing was measured",
            f"use one of {', '.join(BACKENDS)}",
        )
    backend.prove()
    return backend


def _best(device: DeviceName, max_repetitions: int) -> Backend:
    fallback = inprocess_backend()
    if device == "cuda":
        return fallback
    tool = find_nsys()
    if tool is None:
        _log.warning("nsys was not found; timing with %s instead", fallback.name)
        return fallback
    backend = NsysBackend(tool, device, max_repetitions)
    try:
        backend.prove()
    except CostprofError as error:
        _log.warning("%s; timing with %s instead", error.fact, fallback.name)
        return fallback
    return backend
