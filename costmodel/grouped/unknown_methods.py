"""Methods that a model does not know, priced as the likest it does, with the doubt of that.

A method is a framework and its version, a kernel and a precision. With too few readings of one the
fit has no constants of it, and a table that was merged may hold readings of a method its model
never saw.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from costprof.costmodel.grouped.model import GroupedModel, Part
from costprof.costmodel.grouped.points import LayerPoints

Array = npt.NDArray[np.float64]

OTHER_VERSION_STD = 0.15
OTHER_KERNEL_STD = 0.8
"""Of the log latency of a method priced as another one: what vLLM 0.24's kernels and 0.22's differ
by (root mean square) on 32,079 layers of an H200, where both run Triton's kernel, and over all."""


def is_known(points: LayerPoints, model: GroupedModel) -> npt.NDArray[np.bool_]:
    """Return whether `model` was fitted to each point's method: [n]."""
    return np.isin(points.method, sorted(_known(model)))


def with_known_methods(points: LayerPoints, model: GroupedModel) -> LayerPoints:
    """Return `points`, those of a method unknown to `model` under the name of the likest one.

    A precision of which no method is known stays what it is.
    """
    likest = likest_methods(np.unique(points.method).tolist(), model)
    if not likest:
        return points
    names = [likest.get(method, method).split("|") for method in points.method.tolist()]
    renamed = dataclasses.replace(
        points,
        framework=np.array([name[0] for name in names]),
        kernel=np.array([name[1] for name in names]),
    )
    return renamed.with_load(points.load)


def likest_methods(methods: Iterable[str], model: GroupedModel) -> dict[str, str]:
    """Return, of those `methods` that `model` does not know, the likest of the same precision."""
    known = _known(model)
    parts = sorted(tuple(method.split("|")) for method in known)
    found = {}
    for method in methods:
        framework, kernel, precision = method.split("|")
        ranked = sorted(
            (each for each in parts if each[2] == precision),
            key=lambda each: (each[1] != kernel, each[0].split(" ")[0] != framework.split(" ")[0]),
        )
        if ranked and method not in known:
            found[method] = "|".join(ranked[0])
    return found


def doubt_std(points: LayerPoints, model: GroupedModel) -> Array:
    """Return by what more the log latency is in doubt where the method is unknown: [n], else 0."""
    likest = with_known_methods(points, model)
    replaced = likest.method != points.method
    std = np.where(replaced & (likest.kernel == points.kernel), OTHER_VERSION_STD, OTHER_KERNEL_STD)
    return np.where(is_known(points, model), 0.0, std)


def with_constants_of(model: GroupedModel, likest: dict[str, str]) -> GroupedModel:
    """Return `model`, each method of `likest` having the constants of the one it maps to."""

    def widened(part: Part) -> Part:
        stages, powers = dict(part.stages), dict(part.powers)
        for method, like in likest.items():
            if like in stages:
                stages[method] = stages[like]
            if like in powers:
                powers[method] = powers[like]
        return dataclasses.replace(part, stages=stages, powers=powers)

    return dataclasses.replace(
        model, parts={fold: widened(part) for fold, part in model.parts.items()}
    )


def _known(model: GroupedModel) -> set[str]:
    return {method for part in model.parts.values() for method in part.stages}
