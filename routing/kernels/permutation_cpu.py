"""Where each expert's rows lie, counted on a CPU by the compiled code beside this file."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from costprof.core.errors import InputError
from costprof.routing.kernels.compiled import library


@functools.cache
def _function() -> ctypes._NamedFuncPointer | None:
    found = library("permutation.c")
    if found is None:
        return None
    function = found.costprof_permutation
    function.argtypes = [ctypes.c_int64] * 2 + [ctypes.c_void_p] * 6
    function.restype = ctypes.c_int
    return function


def available() -> bool:
    """Whether this machine could compile the code."""
    return _function() is not None


def permute_slots(indices: Tensor, used: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the slot at each place and the place of each slot, both [T·k] int64.

    Args:
        indices: [T, k] int64.
        used: [T, k] bool.
        counts: [E] int64, used slots of each expert.

    Raises:
        InputError: shapes differ, or the counts are not those of the slots.
    """
    function = _function()
    assert function is not None
    if used.shape != indices.shape:
        raise InputError(
            f"used has shape {list(used.shape)}, indices {list(indices.shape)}",
            "the rows cannot be dealt to the experts",
            "give both of the same assignment",
        )
    indices, used = indices.long().contiguous(), used.bool().contiguous()
    counts = counts.long().contiguous()
    next_place = torch.empty_like(counts)
    slots_at = torch.empty(indices.numel(), dtype=torch.int64)
    places = torch.empty_like(slots_at)
    code = function(
        indices.numel(),
        counts.numel(),
        indices.data_ptr(),
        used.data_ptr(),
        counts.data_ptr(),
        next_place.data_ptr(),
        slots_at.data_ptr(),
        places.data_ptr(),
    )
    if code < 0:
        raise InputError(
            "the counts are not those of the slots",
            "the rows cannot be dealt to the experts",
            "give the counts of the same assignment",
        )
    return slots_at, places
