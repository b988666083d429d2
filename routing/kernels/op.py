"""`costprof::marginal`: the compiled decision as an operator of torch, for `torch.compile`.

A trace cannot look into C, or into a launch; as an operator the decision is one node of its graph,
whose shapes are known without values. Where there is nothing compiled, a trace takes up the tensor
code instead. Eager code calls the decision directly (`dispatch.compiled_decision`): the way through
torch's dispatcher takes 10 to 15 µs, as long as the decision itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from costprof.costmodel.lookup import DenseLookup
from costprof.routing.contract import Selection
from costprof.routing.gate import untouched
from costprof.routing.kernels import marginal_cpu
from costprof.routing.kernels.terms import Decide, Terms, decided


def decide(
    plain: Selection,
    lookup: DenseLookup,
    terms: Terms,
    *,
    real: Tensor | None,
    changeable: Tensor | None,
) -> Selection:
    """Return the selection, counts with it; arguments as of `marginal_cpu.decide`."""
    got = marginal(
        plain.scores,
        plain.ranking,
        plain.indices,
        plain.weights,
        real,
        changeable,
        lookup.values,
        lookup.class_index,
        lookup.slope,
        lookup.base,
        lookup.n_classes,
        lookup.max_tokens,
        *terms,
    )
    return decided(plain, *got)


def _decision(scores: Tensor) -> Decide:
    """Return what decides where `scores` lie."""
    if scores.is_cpu:
        return marginal_cpu.decide
    from costprof.routing.kernels import marginal_gpu

    return marginal_gpu.decide


def _marginal(
    scores: Tensor,
    ranking: Tensor,
    indices: Tensor,
    weights: Tensor,
    real: Tensor | None,
    changeable: Tensor | None,
    values: Tensor,
    class_index: Tensor,
    slope: Tensor,
    base: Tensor,
    n_classes: int,
    max_tokens: int,
    first_weight: float,
    second_weight: float,
    lam: float,
    budget: float,
    slack: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return indices, weights, used [T, k], gate_mass_lost [T] and counts [E] of a `Selection`.

    The arguments are what a plain `Selection`, a `DenseLookup` and `Terms` hold, and the rows.
    """
    used, nothing_lost = untouched(indices.shape[0], indices.shape[1], indices.device)
    plain = Selection(
        scores=scores,
        ranking=ranking,
        indices=indices,
        weights=weights,
        used=used,
        gate_mass_lost=nothing_lost,
    )
    got = _decision(scores)(
        plain,
        DenseLookup(values, class_index, slope, base, n_classes, max_tokens),
        Terms(first_weight, second_weight, lam, budget, slack),
        real=real,
        changeable=changeable,
    )
    assert got.counts is not None
    return got.indices, got.weights, got.used, got.gate_mass_lost, got.counts


marginal = torch.library.custom_op(
    "costprof::marginal", _marginal, mutates_args=(), device_types=("cpu", "cuda")
)


@marginal.register_fake
def _shapes(
    scores: Tensor, ranking: Tensor, indices: Tensor, weights: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(indices),
        torch.empty_like(weights),
        torch.empty_like(indices, dtype=torch.bool),
        scores.new_empty(scores.shape[0], dtype=torch.float64),
        scores.new_empty(scores.shape[1], dtype=torch.int64),
    )
