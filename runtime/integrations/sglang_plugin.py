"""Plug-in for SGLang, found by its entry point in the group `sglang.srt.plugins`.

Facts: SGLang 0.5.23. Its hook registry wraps functions by name: `TopK.__init__` is handed a
`custom_routing_function`, or, where layers are only watched, `select_experts` is listened to. The
forward context lends the batch's `moe_num_token_non_padded`, a bound method whose result is a
buffer that graphs can read; rows from that number on are padding.
"""

from __future__ import annotations

import inspect
import os
from typing import Any

import torch
from torch import Tensor

from costprof.core.errors import InputError
from costprof.routing.contract import SystemState
from costprof.runtime.integrations.config import read_config
from costprof.runtime.integrations.graphs import is_captured
from costprof.runtime.integrations.serving import UNKNOWN, LayerTotals, ServedLayers, Step

TOPK_INIT = "sglang.srt.layers.moe.topk.TopK.__init__"
SELECT_EXPERTS = "sglang.srt.layers.moe.topk.select_experts"
_served: list[ServedLayers] = []


def register() -> None:
    """Called by SGLang in each of its processes; without effect unless a configuration is named.

    Raises:
        InputError, TableError: the configuration cannot be followed.
    """
    if _served:
        return
    config = read_config(os.environ)
    if config is None:
        return
    from sglang.srt.plugins.hook_registry import (
        HookRegistry,
        HookType,
    )

    served = ServedLayers(config.table, config.policy, read_step)
    hooks = Hooks(served)
    if served.policy is None or served.policy.neutral:
        HookRegistry.register(SELECT_EXPERTS, hooks.after_select_experts, HookType.AFTER)
    else:
        HookRegistry.register(TOPK_INIT, hooks.before_topk_init, HookType.BEFORE)
    _served.append(served)


def totals() -> list[LayerTotals]:
    """Return what the layers of this process have summed up."""
    return [each for served in _served for each in served.totals()]


def set_state(state: SystemState) -> None:
    """Tell the layers of this process what the machine is doing, for a policy `by_stage`."""
    for served in _served:
        served.state = state


class Hooks:
    """The hooks put on SGLang's functions."""

    def __init__(self, served: ServedLayers) -> None:
        """Route or watch layers through `served`."""
        self._served = served

    def before_topk_init(
        self, *args: Any, **kwargs: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Give a `TopK` under construction its routing function.

        Raises:
            InputError: SGLang lets no function route such a layer (groups, a bias).
        """
        layer = self._served.layer(kwargs.get("layer_id"))
        for name, plain in (
            ("custom_routing_function", None),
            ("use_grouped_topk", False),
            ("scoring_func", "softmax"),
            ("correction_bias", None),
        ):
            value = kwargs.get(name, plain)
            if value is not plain and (isinstance(value, Tensor) or value != plain):
                raise InputError(
                    f"MoE layer {layer.number} routes with {name}",
                    "SGLang lets no function route it",
                    "leave the policy out of the configuration to observe it",
                )
        return args, {**kwargs, "custom_routing_function": layer}

    def after_select_experts(self, result: Any, *args: Any, **kwargs: Any) -> None:
        """Count what `select_experts` returned; ids of shared experts are beyond the table's.

        Raises:
            InputError: the layer is not the table's.
        """
        layer_id = kwargs.get("layer_id")
        if layer_id is None:
            return
        layer = self._served.layer(layer_id)
        given = dict(zip(("hidden_states", "router_logits", "topk_config"), args, strict=False))
        given |= kwargs
        shared: int = given["topk_config"].num_shared_topk_slots
        layer.check(given["router_logits"].shape[-1], result.topk_ids.shape[-1] - shared)
        layer.observe(result.topk_ids)


def read_step(logits: Tensor) -> Step:
    """Return what SGLang's forward context says of the rows `logits` [T, …] are of."""
    from sglang.srt.model_executor.forward_context import (
        get_forward_context,
        has_forward_context,
    )

    if not has_forward_context():
        return UNKNOWN
    return step_of(get_forward_context(), logits)


def step_of(context: Any, logits: Tensor) -> Step:
    """Return what a forward context says of the rows of `logits`.

    Without a count of real rows a batch of as many rows as sequences has no padding, unless a
    graph is being captured: then its replays may have some, and nothing is changed.
    """
    lent = context.moe_num_token_non_padded
    batch = getattr(lent, "__self__", None)
    if lent is None or batch is None or not inspect.ismethod(lent):
        return UNKNOWN
    is_decode = bool(batch.forward_mode.is_decode())
    real_rows = lent()
    if real_rows is None:
        capturing = is_captured(logits)
        whole = logits.shape[0] == batch.batch_size
        return Step(is_decode=is_decode and whole and not capturing)
    real = torch.arange(logits.shape[0], device=logits.device) < real_rows
    return Step(real=real, is_decode=is_decode)
