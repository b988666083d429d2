"""What a compiled decision goes by."""

from __future__ import annotations

from typing import NamedTuple


class Terms(NamedTuple):
    """Weights of both columns of a price, and the parameters of `Marginal`.

    `slack` is the gate mass a row may lose, in units of 1 / `pruning.ONE`.
    """

    latency_weight: float
    energy_weight: float
    lam: float
    budget: float
    slack: int
