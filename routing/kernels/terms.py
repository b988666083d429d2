"""What a compiled decision goes by."""

from __future__ import annotations

from typing import NamedTuple


class Terms(NamedTuple):
    """Weights of both columns of a price, and the parameters of `Marginal`.

    `protect` is the gate mass a row protects, in units of 1 / `pruning.ONE`.
    """

    latency_weight: float
    energy_weight: float
    lam: float
    budget: float
    protect: int
