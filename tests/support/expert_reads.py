"""Which experts' weights a model really reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class ExpertReads(TorchFunctionMode):
    """While active, notes every `weights[expert]` of the stacked expert weights of `model`.

    Attributes:
        reads: Experts read by each call of an experts module, in order of calls.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.reads: list[set[int]] = []
        self._owner: dict[int, str] = {}
        for name, module in model.named_modules():
            if name.endswith(".experts"):
                self._owner[id(module.gate_up_proj)] = name
                module.register_forward_pre_hook(lambda *_: self.reads.append(set()))

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if function is Tensor.__getitem__ and id(args[0]) in self._owner:
            assert args[1].numel() == 1
            self.reads[-1].add(int(args[1]))
        return function(*args, **(kwargs or {}))


def mean_reads(model: nn.Module, run: Callable[[], Any]) -> float:
    """Return how many experts a call of an experts module reads on average during `run`."""
    with torch.no_grad(), ExpertReads(model) as reading:
        run()
    assert reading.reads
    assert all(reading.reads), "an experts module ran without reading an expert"
    return sum(map(len, reading.reads)) / len(reading.reads)
