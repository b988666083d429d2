"""Experts as modules: weights stored the way their class says, run by the kernel of that class."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from costprof.core.errors import InputError
from costprof.core.expert import ExpertClass, refuse_priced_only
from costprof.core.work import fc1_width
from costprof.routing.contract import SystemState
from costprof.runtime.kernel_choice import KernelChoice
from costprof.runtime.kernels import torch_ffn, torch_packed

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_KERNELS: dict[tuple[str, str], Callable[..., Tensor]] = {
    ("swiglu", "none"): torch_ffn.swiglu,
    ("relu", "none"): torch_ffn.relu,
    **{("swiglu", kind): torch_packed.swiglu for kind in ("int8", "int4", "fp8")},
    **{("relu", kind): torch_packed.relu for kind in ("int8", "int4", "fp8")},
}


class Expert(nn.Module):
    """One feed-forward expert for inference; its stored weights are buffers.

    Attributes:
        expert_class: What decides its cost.
        choice: Which tile config its kernel runs under; None for a kernel without tiles.
    """

    def __init__(
        self,
        expert_class: ExpertClass,
        w1: Tensor,
        w2: Tensor,
        *,
        choice: KernelChoice | None = None,
    ) -> None:
        """Store `w1` [W, d_model] and `w2` [d_model, d_ff] as `expert_class` says.

        W is 2·d_ff for SwiGLU (gate rows first, then up), d_ff for ReLU. A 4-bit class packs
        them here, once. With a `choice` its kernel runs the expert, else the one for the class.

        Raises:
            InputError: the class is no feed-forward block, or the weights have other shapes.
        """
        super().__init__()
        self.expert_class = expert_class
        self.choice = choice
        self._kernel = _kernel_of(expert_class) if choice is None else choice.kernel
        _check_weights(expert_class, w1, w2)
        dtype = DTYPES[expert_class.dtype]
        weights = (w1.detach().to(dtype).contiguous(), w2.detach().to(dtype).contiguous())
        prepare: Any = getattr(self._kernel, "prepare", None)
        if prepare is not None:
            weights = prepare(weights, expert_class)
        self._names = [f"weight_{number}" for number in range(len(weights))]
        for name, weight in zip(self._names, weights, strict=True):
            self.register_buffer(name, weight)

    @classmethod
    def random(
        cls,
        expert_class: ExpertClass,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
        *,
        choice: KernelChoice | None = None,
    ) -> Expert:
        """Return an expert with normal weights of variance 1 / fan-in, made by `generator`."""
        _kernel_of(expert_class)
        dtype = DTYPES[expert_class.dtype]
        shapes = (
            (fc1_width(expert_class), expert_class.d_model),
            (expert_class.d_model, expert_class.d_ff),
        )
        w1, w2 = (
            torch.empty(shape, dtype=dtype).normal_(generator=generator) / math.sqrt(shape[1])
            for shape in shapes
        )
        return cls(expert_class, w1.to(device), w2.to(device), choice=choice)

    def forward(self, x: Tensor, state: SystemState | None = None) -> Tensor:
        """Return [T, d_model] for `x` [T, d_model], in the dtype of `x`.

        `state` may decide the tile config, never the result beyond its rounding.
        """
        config = self.choice.config(x.shape[0], state) if self.choice is not None else {}
        out = self._kernel(x.to(DTYPES[self.expert_class.dtype]), *self.weights, **config)
        return out.to(x.dtype)

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """The weights as stored, in the order the kernel takes them."""
        return tuple(self.get_buffer(name) for name in self._names)


def _kernel_of(expert_class: ExpertClass) -> Callable[..., Tensor]:
    refuse_priced_only(expert_class)
    kernel = _KERNELS.get((expert_class.activation, expert_class.quantisation))
    if expert_class.block != "ffn" or kernel is None:
        raise InputError(
            f"an expert of block {expert_class.block} with activation {expert_class.activation}",
            "it cannot be run",
            "use a feed-forward expert with swiglu or relu",
        )
    return kernel


def _check_weights(expert_class: ExpertClass, w1: Tensor, w2: Tensor) -> None:
    for name, weight, shape in (
        ("w1", w1, (fc1_width(expert_class), expert_class.d_model)),
        ("w2", w2, (expert_class.d_model, expert_class.d_ff)),
    ):
        if tuple(weight.shape) != shape:
            raise InputError(
                f"{name} has shape {list(weight.shape)}",
                "the expert cannot be built",
                f"give a weight of shape {list(shape)}",
            )
