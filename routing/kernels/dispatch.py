"""Which compiled decision a batch can have: C on a CPU, Triton on a GPU, or none."""

from __future__ import annotations

import functools
import importlib.util
from typing import Protocol

from torch import Tensor

from costprof.costmodel.lookup import DenseLookup
from costprof.routing.contract import Selection
from costprof.routing.kernels import marginal_cpu
from costprof.routing.kernels.terms import Terms

MOST_EXPERTS_ON_GPU = 512
"""One thread block holds a number for each expert, and under a budget one for each pair."""


class Decide(Protocol):
    """A compiled decision; see `marginal_cpu.decide`."""

    def __call__(
        self,
        plain: Selection,
        lookup: DenseLookup,
        terms: Terms,
        *,
        real: Tensor | None,
        changeable: Tensor | None,
    ) -> Selection:
        """Return the selection, counts with it."""
        ...


def compiled_decision(plain: Selection) -> Decide | None:
    """Return what decides on `plain` where it lies, or None: tensors have to."""
    if plain.scores.is_cpu:
        return marginal_cpu.decide if marginal_cpu.available() else None
    if not plain.scores.is_cuda or plain.scores.shape[1] > MOST_EXPERTS_ON_GPU:
        return None
    return _on_gpu()


@functools.cache
def _on_gpu() -> Decide | None:
    if importlib.util.find_spec("triton") is None:
        return None
    from costprof.routing.kernels import marginal_gpu

    return marginal_gpu.decide
