"""`marginal`'s decision on a CPU, by the compiled code beside this file."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from costprof.costmodel.lookup import DenseLookup
from costprof.routing.contract import Selection
from costprof.routing.kernels.compiled import library
from costprof.routing.kernels.terms import Terms, decided


class _Problem(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "experts", "top_k", "classes")),
        *((name, ctypes.c_int64) for name in ("max_tokens", "slack")),
        *((name, ctypes.c_double) for name in ("first_weight", "second_weight")),
        *((name, ctypes.c_double) for name in ("lam", "budget")),
        *((name, ctypes.c_void_p) for name in ("values", "class_index", "slope", "base")),
    )


_problem = functools.lru_cache(maxsize=256)(_Problem)
"""Batches of one size and layer share what C is told of both, which it only reads."""


@functools.cache
def _function() -> ctypes._NamedFuncPointer | None:
    found = library("marginal.c")
    if found is None:
        return None
    function = found.costprof_marginal
    function.argtypes = [ctypes.c_void_p] * 12
    function.restype = ctypes.c_int
    return function


def available() -> bool:
    """Whether this machine could compile the code."""
    return _function() is not None


def decide(
    plain: Selection,
    lookup: DenseLookup,
    terms: Terms,
    *,
    real: Tensor | None,
    changeable: Tensor | None,
) -> Selection:
    """Return the selection, counts with it.

    Args:
        plain: Plain top-k of T rows, on a CPU.
        lookup: Prices of the E experts.
        terms: What to decide by.
        real: [T] bool; None: all rows are.
        changeable: [T] bool; None: all rows are.
    """
    function = _function()
    assert function is not None
    scores, ranking = plain.scores.contiguous(), plain.ranking.contiguous()
    indices, weights = plain.indices.contiguous(), plain.weights.contiguous()
    # Held here, as C gets addresses alone.
    real = None if real is None else real.contiguous()
    changeable = None if changeable is None else changeable.contiguous()
    rows, top_k = indices.shape
    experts = scores.shape[1]
    problem = _problem(
        rows,
        experts,
        top_k,
        lookup.n_classes,
        lookup.max_tokens,
        terms.slack,
        terms.first_weight,
        terms.second_weight,
        terms.lam,
        terms.budget,
        lookup.values.data_ptr(),
        lookup.class_index.data_ptr(),
        lookup.slope.data_ptr(),
        lookup.base.data_ptr(),
    )
    new_indices, new_weights = torch.empty_like(indices), torch.empty_like(weights)
    used = torch.empty(rows, top_k, dtype=torch.bool)
    lost = torch.empty(rows, dtype=torch.float64)
    counts = torch.empty(experts, dtype=torch.int64)
    code = function(
        ctypes.addressof(problem),
        scores.data_ptr(),
        ranking.data_ptr(),
        indices.data_ptr(),
        weights.data_ptr(),
        None if real is None else real.data_ptr(),
        None if changeable is None else changeable.data_ptr(),
        new_indices.data_ptr(),
        new_weights.data_ptr(),
        used.data_ptr(),
        lost.data_ptr(),
        counts.data_ptr(),
    )
    if code < 0:
        raise MemoryError("no memory is left to route a batch")
    return decided(plain, new_indices, new_weights, used, lost, counts)
