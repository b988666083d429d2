"""Look up which products, activations and router choices belong to which module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from costprof.profiler.from_model.shapes import ExpertGroup, Ffn
from costprof.profiler.from_model.trace import Matmul, TopK, Trace

if TYPE_CHECKING:
    from torch import nn


class Scopes:
    """Looks up what ran inside a module."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._index = {id(module): index for index, module in enumerate(trace.modules)}
        self._made: dict[int, list[Matmul]] = {}
        for matmul in trace.matmuls:
            for index in set(matmul.scope):
                self._made.setdefault(index, []).append(matmul)
        self._parent: dict[int, nn.Module] = {}
        self.names: dict[int, str] = {}
        for root in trace.roots:
            for module in root.modules():
                for child in module.children():
                    self._parent.setdefault(id(child), module)
            prefix = "" if len(trace.roots) == 1 else f"{type(root).__name__}."
            for name, module in root.named_modules():
                self.names.setdefault(id(module), f"{prefix}{name}".strip("."))

    def index(self, module: nn.Module | None) -> int | None:
        """Index of `module`, or of the nearest one around it that ran."""
        while module is not None:
            if id(module) in self._index:
                return self._index[id(module)]
            module = self._parent.get(id(module))
        return None

    def ran(self, module: nn.Module) -> bool:
        """Say if the forward of `module` ran."""
        return id(module) in self._index

    def first_inner(self, module: nn.Module) -> int | None:
        """Inner size of the first product made in `module`, None if it made none."""
        made = self._made.get(self._index.get(id(module), -1), [])
        return made[0].inner if made else None

    def matmuls(self, ffn: Ffn, *, stacked: bool) -> list[Matmul]:
        """Products of `ffn` by place and shape, each with the tokens in its rows.

        Only stacked experts may run in the forward of a parent.
        """
        if not stacked and not self.ran(ffn.module):
            return []
        index = self.index(ffn.module)
        made = self._made.get(index, []) if index is not None else []
        return [found for matmul in made if (found := _as_made_by(ffn, matmul)) is not None]

    def activations(self, group: ExpertGroup) -> set[str]:
        """Names of the activations that ran in the experts."""
        found: set[str] = set()
        for ffn in group.ffns:
            index = self.index(ffn.module)
            if index is not None and (group.stacked or self.ran(ffn.module)):
                found |= self.trace.activations.get(index, set())
        return found

    def plausible(self, module: nn.Module) -> bool:
        """Say if `module` can be an FFN: it did not run, or ran an activation and no attention."""
        index = self._index.get(id(module))
        if index is None:
            return True
        return index in self.trace.activations and index not in self.trace.attention

    def worked(self, group: ExpertGroup) -> bool:
        """Say if experts of the group made products, with an activation."""
        made = any(self.matmuls(ffn, stacked=group.stacked > 0) for ffn in group.ffns)
        return made and bool(self.activations(group))

    def router(self, group: ExpertGroup) -> list[TopK]:
        """Choices among as many as there are experts, in the nearest module around them."""
        choices = [choice for choice in self.trace.topks if choice.width == group.experts]
        module: nn.Module | None = group.container
        while module is not None:
            index = self._index.get(id(module))
            near = [choice for choice in choices if index is not None and index in choice.scope]
            if near:
                return near
            module = self._parent.get(id(module))
        return []


def _as_made_by(ffn: Ffn, matmul: Matmul) -> Matmul | None:
    if ffn.shape.makes(matmul.inner, matmul.columns):
        return matmul
    # Some multiply the weight by one column per token.
    if ffn.shape.makes(matmul.inner, matmul.rows):
        return matmul.transposed()
    return None
