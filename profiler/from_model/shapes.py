"""Recognise the feed-forward experts of a torch model by the shapes of their weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

_Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class FfnShape:
    """Sizes of one FFN and how it multiplies.

    `gated` says if there is a gate, `matrices` how many products one call makes: 2, or 3 where
    gate and up are apart.
    """

    d_model: int
    d_ff: int
    gated: bool
    matrices: int
    dtype: torch.dtype

    def makes(self, inner: int, columns: int) -> bool:
        """Say if a product `[., inner] x [inner, columns]` is one of this FFN's."""
        fused = self.gated and self.matrices == 2
        wide = 2 * self.d_ff if fused else self.d_ff
        return (inner, columns) in ((self.d_model, wide), (self.d_ff, self.d_model))


@dataclass(frozen=True, slots=True)
class Ffn:
    """A module that is an FFN, or holds the stacked weights of several."""

    name: str
    module: nn.Module
    shape: FfnShape
    has_bias: bool


@dataclass(frozen=True, slots=True)
class ExpertGroup:
    """FFNs that stand side by side in one container, in expert-id order.

    Where one module holds the experts as 3-D weights `[E, ., .]`, `ffns` has that module once and
    `stacked` is E; else `stacked` is 0. An FFN that stands alone is a group of one.
    """

    name: str
    container: nn.Module
    ffns: tuple[Ffn, ...]
    stacked: int = 0

    @property
    def experts(self) -> int:
        """How many experts there are."""
        return self.stacked or len(self.ffns)


def expert_groups(
    root: nn.Module,
    first_inner: Callable[[nn.Module], int | None],
    plausible: Callable[[nn.Module], bool],
) -> list[ExpertGroup]:
    """Return all groups of FFNs in `root`, stacked ones first.

    FFNs are: gate, up and down projections as three `nn.Linear`; gate and up fused into one of
    twice the width, and down; two projections; and the same as 3-D parameters of one module.

    Args:
        root: The model.
        first_inner: Gives the inner size of the first product seen in a module, or None. Stacked
            weights alone do not tell `[E, out, in]` from `[E, in, out]`.
        plausible: Says if a module with linears of an FFN's shapes can be one by what it did.
    """
    names = {id(module): name for name, module in root.named_modules()}
    groups = []
    for name, module in root.named_modules():
        found = _stacked(module, first_inner(module))
        if found is not None:
            experts, shape, has_bias = found
            ffn = Ffn(name, module, shape, has_bias)
            groups.append(ExpertGroup(name, module, (ffn,), stacked=experts))
    gathered: dict[tuple[int, int], tuple[nn.Module, list[Ffn]]] = {}
    for path in _paths(root, ()):
        linears = _linear_ffn(path[-1], names[id(path[-1])])
        if linears is not None and plausible(path[-1]):
            container = _container(path)
            key = (id(container), linears.shape.d_model)
            gathered.setdefault(key, (container, []))[1].append(linears)
    groups += [
        ExpertGroup(names[id(container)], container, tuple(ffns))
        for container, ffns in gathered.values()
    ]
    return groups


def _paths(module: nn.Module, above: tuple[nn.Module, ...]) -> Iterator[tuple[nn.Module, ...]]:
    path = (*above, module)
    yield path
    for child in module.children():
        yield from _paths(child, path)


def _container(path: tuple[nn.Module, ...]) -> nn.Module:
    """Return what holds the FFN at the end of `path` beside its siblings.

    An expert may be wrapped: a parent without further weights is part of the expert.
    """
    size = _weight_count(path[-1])
    for parent in reversed(path[:-1]):
        if _weight_count(parent) != size:
            return parent
    return path[0]


def _weight_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _linear_ffn(module: nn.Module, name: str) -> Ffn | None:
    from torch import nn

    linears = [child for child in module.children() if isinstance(child, nn.Linear)]
    pairs = [(linear.in_features, linear.out_features) for linear in linears]
    found = _three(pairs) if len(pairs) == 3 else _two(pairs) if len(pairs) == 2 else None
    if found is None:
        return None
    d_model, d_ff, gated = found
    shape = FfnShape(d_model, d_ff, gated, len(pairs), linears[0].weight.dtype)
    return Ffn(name, module, shape, any(linear.bias is not None for linear in linears))


def _three(pairs: list[_Pair]) -> tuple[int, int, bool] | None:
    counts = Counter(pairs)
    (d_model, d_ff), times = counts.most_common(1)[0]
    alike = d_model == d_ff and times == 3
    if alike or (times == 2 and counts[(d_ff, d_model)] == 1):
        return d_model, d_ff, True
    return None


def _two(pairs: list[_Pair]) -> tuple[int, int, bool] | None:
    for (d_model, wide), (d_ff, back) in (pairs, pairs[::-1]):
        if back == d_model and wide in (d_ff, 2 * d_ff):
            return d_model, d_ff, wide != d_ff
    return None


def _stacked(module: nn.Module, first_inner: int | None) -> tuple[int, FfnShape, bool] | None:
    own = list(module.parameters(recurse=False))
    weights = [parameter for parameter in own if parameter.dim() == 3]
    if len(weights) not in (2, 3) or len({int(weight.shape[0]) for weight in weights}) != 1:
        return None
    sides = [(int(weight.shape[1]), int(weight.shape[2])) for weight in weights]
    candidates = sides[0][::-1] if first_inner is None else (first_inner,)
    for d_model in candidates:
        found = _stacked_sizes(sides, d_model)
        if found is not None:
            shape = FfnShape(d_model, *found, len(weights), weights[0].dtype)
            return int(weights[0].shape[0]), shape, any(p.dim() == 2 for p in own)
    return None


def _stacked_sizes(sides: list[_Pair], d_model: int) -> tuple[int, bool] | None:
    """Return d_ff and whether there is a gate, for weights with `d_model` on one side each."""
    if not all(d_model in side for side in sides):
        return None
    narrow, *_, wide = sorted(b if a == d_model else a for a, b in sides)
    if narrow == wide:
        return narrow, len(sides) == 3
    if len(sides) == 2 and wide == 2 * narrow:
        return narrow, True
    return None
