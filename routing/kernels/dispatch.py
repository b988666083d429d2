"""Which compiled decision a batch can have: C on a CPU, Triton on a GPU, or none."""

from __future__ import annotations

import functools
import importlib.util

import torch

from costprof.routing.contract import Selection
from costprof.routing.kernels import marginal_cpu, op
from costprof.routing.kernels.terms import Decide

MOST_EXPERTS_ON_GPU = 512
"""One thread block holds a number for each expert, and under a budget one for each pair."""


def compiled_decision(plain: Selection, *, search: bool) -> Decide | None:
    """Return what decides on `plain` where it lies, or None: tensors have to.

    So they do where weights have a gradient, which compiled code would not pass on, and on a GPU
    where a `search` for the cheapest is due (`routing.cheapest`). In a trace of `torch.compile` it
    is an operator that decides.
    """
    scores = plain.scores
    if plain.weights.requires_grad:
        return None
    if scores.is_cuda and (search or scores.shape[1] > MOST_EXPERTS_ON_GPU):
        return None
    if torch.compiler.is_compiling():
        return op.decide if _exists(scores.device.type) else None
    if scores.is_cpu:
        return _on_cpu()
    return _on_gpu() if scores.is_cuda else None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _exists(device_type: str) -> bool:
    """Whether this machine has a compiled decision; asked once a trace."""
    if device_type == "cpu":
        return _on_cpu() is not None
    return device_type == "cuda" and _on_gpu() is not None


def _on_cpu() -> Decide | None:
    return marginal_cpu.decide if marginal_cpu.available() else None


@functools.cache
def _on_gpu() -> Decide | None:
    if importlib.util.find_spec("triton") is None:
        return None
    from costprof.routing.kernels import marginal_gpu

    return marginal_gpu.decide
