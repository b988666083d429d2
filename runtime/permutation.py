"""Where each expert's rows of a routed batch lie side by side, from the router's counts.

Expert `e`'s rows begin after `counts[: e]` and keep the order of the batch; slots that are not used
come last. Compiled code on a CPU and the Triton kernel on a GPU count the slots that came before;
elsewhere, and in a trace of `torch.compile`, a stable sort finds the same places. Nothing waits for
the device.

T is rows, k slots a row, E experts.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import NamedTuple

import torch
from torch import Tensor

from costprof.routing.kernels import permutation_cpu


class Permutation(NamedTuple):
    """Two orders of the T·k slots of a batch, each the inverse of the other; both [T·k] int64.

    Attributes:
        slots: Which slot lies at each place.
        places: Where each slot lies; slot `t·k + j` is row `t`'s `j`-th.
    """

    slots: Tensor
    places: Tensor


def permutation(indices: Tensor, used: Tensor, counts: Tensor) -> Permutation:
    """Return where the slots of a batch lie, expert by expert.

    Args:
        indices: [T, k] int64, an expert of each slot.
        used: [T, k] bool, which slots hold theirs.
        counts: [E] int64, used slots of each expert (`Assignment.counts`).

    Raises:
        InputError: on a CPU, the counts are not those of the slots. Elsewhere that is not checked:
            it would wait for the device.
    """
    tracing = torch.compiler.is_compiling()  # C and launches are nothing a trace can look into
    if indices.is_cpu and not tracing and permutation_cpu.available():
        return Permutation(*permutation_cpu.permute_slots(indices, used, counts))
    expert = indices.masked_fill(~used, counts.numel())  # as if of one more expert, the last
    if indices.is_cuda and not tracing and _has_triton():
        return _by_triton(expert, counts.numel() + 1)
    return _by_sorting(expert)


def _by_triton(expert: Tensor, experts: int) -> Permutation:
    from costprof.runtime.kernels.triton_permute import number_slots

    places = number_slots(expert, experts)[1].to(torch.int64)
    return Permutation(_inverse(places), places)


def _by_sorting(expert: Tensor) -> Permutation:
    slots = torch.argsort(expert.flatten(), stable=True)
    return Permutation(slots, _inverse(slots))


def _inverse(order: Tensor) -> Tensor:
    """Return the inverse of a permutation [n]."""
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
