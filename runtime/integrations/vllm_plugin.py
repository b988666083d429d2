"""Plug-in for vLLM, found by its entry point in the group `vllm.general_plugins`.

Facts: vLLM 0.33.0. Every MoE layer asks `create_fused_moe_router` of `fused_moe.layer` for its
router: there a layer is given its `custom_routing_function`, or, where it is only watched, the
router a `set_capture_fn` callback. The forward context holds `is_padding`, a buffer that graphs
can read, and the attention metadata with `max_query_len`.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from costprof.core.errors import InputError
from costprof.routing.contract import SystemState
from costprof.runtime.integrations.config import read_config
from costprof.runtime.integrations.graphs import is_captured
from costprof.runtime.integrations.serving import UNKNOWN, LayerTotals, ServedLayers, Step

_served: list[ServedLayers] = []


def register() -> None:
    """Called by vLLM in each of its processes; without effect unless a configuration is named.

    Raises:
        InputError, TableError: the configuration cannot be followed.
    """
    if _served:
        return
    config = read_config(os.environ)
    if config is None:
        return
    from vllm.model_executor.layers.fused_moe import layer

    served = ServedLayers(config.table, config.policy, read_step)
    layer.create_fused_moe_router = routed_by(layer.create_fused_moe_router, served)
    _served.append(served)


def totals() -> list[LayerTotals]:
    """Return what the layers of this process have summed up; for `LLM.apply_model` and the like."""
    return [each for served in _served for each in served.totals()]


def set_state(state: SystemState) -> None:
    """Tell the layers of this process what the machine is doing, for a policy `by_stage`."""
    for served in _served:
        served.state = state


def routed_by(create: Callable[..., Any], served: ServedLayers) -> Callable[..., Any]:
    """Return `create_fused_moe_router` as `create` is, for layers that `served` routes or watches.

    The function it returns raises an InputError where the table is of another layer, or a policy
    is asked of a layer whose routing vLLM leaves to no function (groups, a bias, a scaling).
    """
    signature = inspect.signature(create)

    @functools.wraps(create)
    def created(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        layer = served.layer()
        experts = given.get("num_logical_experts") or given["global_num_experts"]
        layer.check(experts, given["top_k"])
        if layer.policy is None or layer.policy.neutral:
            router = create(*args, **kwargs)
            router.set_capture_fn(layer.observe)
            return router
        _check_takes_a_function(layer.number, given)
        return create(**{**given, "custom_routing_function": layer})

    return created


def read_step(logits: Tensor) -> Step:
    """Return what vLLM's forward context says of the rows `logits` [T, …] are of."""
    from vllm.forward_context import (
        get_forward_context,
        is_forward_context_available,
    )

    if not is_forward_context_available():
        return UNKNOWN
    return step_of(get_forward_context(), logits)


def step_of(context: Any, logits: Tensor) -> Step:
    """Return what a forward context says of the rows of `logits`.

    Decode is a batch in which every request has one token. Inside a graph that is so for every
    replay only if the graph was captured for such batches alone (`batch_descriptor.uniform`).
    """
    padding = context.is_padding
    if padding is None or padding.shape[0] != logits.shape[0]:
        return UNKNOWN  # rows of several ranks side by side, say
    metadata = context.attn_metadata
    if isinstance(metadata, Mapping):
        metadata = next(iter(metadata.values()), None)
    is_decode = getattr(metadata, "max_query_len", 0) == 1
    if is_captured(logits):
        is_decode = is_decode and bool(getattr(context.batch_descriptor, "uniform", False))
    return Step(real=~padding, is_decode=is_decode)


def _check_takes_a_function(number: int, given: Mapping[str, Any]) -> None:
    for name, plain in (
        ("custom_routing_function", None),
        ("use_grouped_topk", False),
        ("scoring_func", "softmax"),
        ("num_fused_shared_experts", 0),
        ("routed_scaling_factor", 1.0),
        ("e_score_correction_bias", None),
        ("zero_expert_type", None),
        ("hash_indices_table", None),
    ):
        value = given.get(name, plain)
        if value is not plain and (isinstance(value, Tensor) or value != plain):
            raise InputError(
                f"MoE layer {number} routes with {name}",
                "vLLM lets no function route it",
                "leave the policy out of the configuration to observe it",
            )
