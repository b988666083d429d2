"""What an attached model does at a router, as operators of torch, for `torch.compile`.

A trace cannot hold records, locks and histories. As an operator each is one node of the graph: it
finds its attachment by a number and does at run time what eager code does. What it returns is what
the experts use, so no node is left out, and layers follow each other in their order. A CUDA graph
would not call it again, so it is kept out of those.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import torch
from torch import Tensor

if TYPE_CHECKING:
    from costprof.runtime.integrations.attachment import Attached

_attached: WeakValueDictionary[int, Attached] = WeakValueDictionary()
_numbers = itertools.count()


def handle_of(attached: Attached) -> int:
    """Return a number by which operators find `attached`, as long as it lives."""
    handle = next(_numbers)
    _attached[handle] = attached
    return handle


def forget(handle: int) -> None:
    """Let operators with `handle` do nothing from now on."""
    _attached.pop(handle, None)


def _route_layer(
    logits: Tensor, weights: Tensor, indices: Tensor, handle: int, layer: str
) -> tuple[Tensor, Tensor]:
    """Return weights and indices [T, k] decided instead of a router's own, and record them."""
    attached = _attached.get(handle)
    changed = None
    if attached is not None:
        changed = attached.route_layer(layer, (logits, weights, indices))
    return (weights.clone(), indices.clone()) if changed is None else changed


def _observe_layer(indices: Tensor, handle: int, layer: str) -> Tensor:
    """Record the indices [T, k] a router chose, and return them."""
    attached = _attached.get(handle)
    if attached is not None:
        attached.observe_layer(layer, indices)
    return indices.clone()


route_layer = torch.library.custom_op(
    "costprof::route_layer",
    _route_layer,
    mutates_args=(),
    tags=(torch.Tag.cudagraph_unsafe,),
)
observe_layer = torch.library.custom_op(
    "costprof::observe_layer",
    _observe_layer,
    mutates_args=(),
    tags=(torch.Tag.cudagraph_unsafe,),
)


@route_layer.register_fake
def _routed_shapes(
    logits: Tensor, weights: Tensor, indices: Tensor, *_: object
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(weights), torch.empty_like(indices)


@observe_layer.register_fake
def _observed_shape(indices: Tensor, *_: object) -> Tensor:
    return torch.empty_like(indices)
