"""Which kernel runs an expert and under which tile config: read from the table, never tuned here.

The choice is a function of the token count and of what the machine is doing. A cool device takes
the fastest config; the hotter it is, or once it draws what it may draw, the more the joules count.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from costprof.costmodel.table import ConfigChoice, CostTable
from costprof.routing.contract import Stage, SystemState
from costprof.runtime.kernels.launch import interpreted

ENERGY_WEIGHT: Mapping[Stage, float] = {"cool": 0.0, "warm": 0.25, "hot": 0.5, "critical": 1.0}
"""How much energy counts against latency in each stage, see `CostTable.best_config`."""

CAPPED_SHARE = 0.97
"""Of the power limit: a device that draws this much is held back by it, and counts as hot."""

_OURS = "costprof.runtime.kernels."


class KernelChoice:
    """The kernel of one expert and, for every token count and stage, its tile config.

    Attributes:
        kernel: The function that was measured; called `kernel(x, *weights, **config)`.
    """

    def __init__(self, kernel: Callable[..., Tensor], choices: Mapping[Stage, ConfigChoice]):
        self.kernel = kernel
        self._choices = dict(choices)

    @classmethod
    def from_table(
        cls, table: CostTable, expert: int, device: torch.device | str
    ) -> KernelChoice | None:
        """Return the choice for `expert`; None where its kernel cannot run on `device`.

        Also None for a kernel that is not costprof's own: a table is data, and does not decide
        which code is imported. Give such a kernel to the constructor yourself.

        Raises:
            InputError: there is no such expert.
        """
        kernel = _our_kernel(table.kernel_name(expert))
        needs_gpu = getattr(kernel, "framework", "") == "triton" and not interpreted()
        if kernel is None or (needs_gpu and torch.device(device).type != "cuda"):
            return None
        return cls(
            kernel,
            {
                stage: table.config_choice(expert, energy_weight=weight)
                for stage, weight in ENERGY_WEIGHT.items()
            },
        )

    def config(self, tokens: int, state: SystemState | None = None) -> Mapping[str, int]:
        """Return the tile config for `tokens`, in constant time and without asking the device."""
        return self._choices[stage_of(state) if state is not None else "cool"](tokens)


def _our_kernel(name: str) -> Callable[..., Tensor] | None:
    module, _, function = name.partition(":")
    if not module.startswith(_OURS):
        return None
    try:
        kernel: Any = getattr(importlib.import_module(module), function, None)
    except ImportError:
        return None  # a kernel of another version, or one whose library is missing
    return kernel if callable(kernel) else None


def stage_of(state: SystemState) -> Stage:
    """Return the stage of `state`; a device at its power limit is at least hot."""
    capped = (
        state.power_w is not None
        and state.power_limit_w is not None
        and state.power_w >= CAPPED_SHARE * state.power_limit_w
    )
    return "hot" if capped and state.stage in ("cool", "warm") else state.stage
