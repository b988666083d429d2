"""What CUDA graphs ask of a layer: memory that stays, as replays run no Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from costprof.core.errors import InputError


def is_captured(tensor: Tensor) -> bool:
    """Whether what is done to `tensor` now is recorded for a CUDA graph."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def lasting(kept: Any, history: Any) -> Any:
    """Return `history` with its tensors in the memory of `kept`, or in new memory without any.

    A graph that was given `kept` and captured this call reads, in each replay, what the one before
    wrote. Histories are tensors, dataclasses and mappings of those, or None.

    Raises:
        InputError: there is no memory yet, and a graph is being captured: its replays would start
            anew each time.
    """
    if isinstance(history, Tensor):
        if isinstance(kept, Tensor):
            kept.copy_(history)
            return kept
        if is_captured(history):
            raise InputError(
                "a CUDA graph is captured of a layer that was never called",
                "its policy would forget every batch",
                "run one batch through the model before",
            )
        return history.clone()
    if isinstance(history, Mapping):
        named = kept if isinstance(kept, Mapping) else {}
        return {name: lasting(named.get(name), value) for name, value in history.items()}
    if is_dataclass(history) and not isinstance(history, type):
        before = kept if type(kept) is type(history) else None
        values = {
            each.name: lasting(getattr(before, each.name, None), getattr(history, each.name))
            for each in fields(history)
        }
        return type(history)(**values)
    return history
