"""What a kernel launch has to know of the device."""

from __future__ import annotations

import contextlib
import functools

import torch
from torch import Tensor

from costprof.core.errors import ToolError

# What the interpreter plays: a few, so that persistent programs take several tiles each.
_INTERPRETED_UNITS = 2


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, on the CPU (TRITON_INTERPRET=1)."""
    try:
        import triton
    except ImportError:
        return False
    return bool(triton.knobs.runtime.interpret)


def require_gpu(x: Tensor) -> None:
    """Refuse a tensor a Triton kernel cannot run on.

    Raises:
        ToolError: it is not on a GPU, and kernels are not interpreted.
    """
    if not x.is_cuda and not interpreted():
        raise ToolError(
            f"a Triton kernel was given a tensor on {x.device}",
            "it was not run",
            "move the tensors to a GPU, or set TRITON_INTERPRET=1 before Python starts",
        )


def on_device_of(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Make the GPU of `x` the current one: Triton launches there, wherever its tensors lie."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


@functools.cache
def streaming_multiprocessors(device: torch.device) -> int:
    """Return the number of multiprocessors of `device`."""
    if device.type != "cuda":
        return _INTERPRETED_UNITS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@functools.cache
def compute_capability(device: torch.device) -> int:
    """Return the compute capability of `device` times ten; of the newest kind off a GPU."""
    if device.type != "cuda":
        return 100
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
