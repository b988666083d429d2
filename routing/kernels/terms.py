"""What a compiled decision goes by, what it is to its caller, and what it returns."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from costprof.costmodel.lookup import DenseLookup
from costprof.routing.contract import Selection


class Terms(NamedTuple):
    """Weights of both columns of a price, and the parameters of `Marginal`.

    `slack` is the gate mass a row may lose, in units of 1 / `pruning.ONE`.
    """

    first_weight: float
    second_weight: float
    lam: float
    budget: float
    slack: int


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


def decided(
    plain: Selection,
    indices: Tensor,
    weights: Tensor,
    used: Tensor,
    gate_mass_lost: Tensor,
    counts: Tensor,
) -> Selection:
    """Return what was made of `plain`, whose scores it keeps."""
    return Selection(
        scores=plain.scores,
        ranking=plain.ranking,
        indices=indices,
        weights=weights,
        used=used,
        gate_mass_lost=gate_mass_lost,
        counts=counts,
    )
