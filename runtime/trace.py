"""Recorded router logits: the batches of one MoE layer, in the order they were routed.

A file holds tensors and nothing else, as safetensors or npz (read without pickle):

| name | shape | |
|---|---|---|
| `logits` | [steps, T, E] or [T, E] | floating point; one step where the first axis is missing |
| `real` | [steps, T] | bool, False for padding; default: all real |
| `sequence` | [steps, T] | whole numbers; default: each row of its own sequence |
| `position` | [steps, T] | whole numbers; default: 0 |
| `is_prefill` | [steps, T] | bool; default: decode |

A step has at most T rows; shorter ones are padded and say so in `real`.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from costprof.core.errors import InputError
from costprof.routing.contract import Rows

_BOOL = ("real", "is_prefill")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """Batches of one layer.

    Attributes:
        logits: [T, E] float32 of each step.
        rows: What the rows of each step are.
    """

    logits: list[Tensor]
    rows: list[Rows]


def load_trace(path: Path) -> Trace:
    """Read the trace at `path`, by its suffix `.safetensors` or `.npz`.

    Raises:
        InputError: no such file, of another kind or damaged; tensors missing or of other shapes.
    """
    if path.suffix not in (".safetensors", ".npz"):
        raise InputError(
            f"{path} is neither .safetensors nor .npz",
            "no trace was read",
            "save the logits in one of these formats",
        )
    if not path.is_file():
        raise InputError(f"{path} is no file", "no trace was read", "name a recorded trace")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                tensors = {name: torch.from_numpy(file[name]) for name in file.files}
        else:
            tensors = load_safetensors(path.read_bytes())
    except (SafetensorError, zipfile.BadZipFile, ValueError, TypeError, EOFError) as error:
        raise InputError(
            f"{path} cannot be read: {error}", "no trace was read", "record it again"
        ) from error
    return trace_of(tensors, str(path))


def trace_of(tensors: dict[str, Tensor], name: str) -> Trace:
    """Return the trace that `tensors` describe; `name` is what errors call it.

    Raises:
        InputError: a tensor is missing, of another shape or type, or a real row is not finite.
    """
    logits = tensors.get("logits")
    if logits is None or logits.dim() not in (2, 3) or not logits.is_floating_point():
        what = "no tensor" if logits is None else f"{logits.dtype} {list(logits.shape)}"
        raise InputError(
            f"logits of {name} are {what}",
            "no trace was read",
            "record floating-point logits of shape [steps, rows, experts]",
        )
    if logits.numel() == 0:
        raise InputError(f"logits of {name} are empty", "no trace was read", "record some batches")
    logits = logits.reshape(-1, *logits.shape[-2:]).float()
    steps, tokens = logits.shape[:2]
    known = {
        "real": torch.ones(steps, tokens, dtype=torch.bool),
        "sequence": torch.arange(tokens).expand(steps, tokens),
        "position": torch.zeros(steps, tokens, dtype=torch.int64),
        "is_prefill": torch.zeros(steps, tokens, dtype=torch.bool),
    }
    for field in known:
        if field in tensors:
            known[field] = _described(tensors[field], field, (steps, tokens), name)
    if not bool(logits[known["real"]].isfinite().all()):
        raise InputError(
            f"logits of real rows of {name} are not all finite",
            "no trace was read",
            "record them again, or mark padding in `real`",
        )
    rows = [
        Rows(
            real=known["real"][step],
            sequence=known["sequence"][step],
            position=known["position"][step],
            is_prefill=known["is_prefill"][step],
        )
        for step in range(steps)
    ]
    return Trace(logits=list(logits), rows=rows)


def _described(value: Tensor, field: str, shape: tuple[int, int], name: str) -> Tensor:
    is_bool = value.dtype == torch.bool
    whole = not (is_bool or value.is_floating_point() or value.is_complex())
    one_step = shape[0] == 1 and tuple(value.shape) == shape[1:]
    if not (is_bool if field in _BOOL else whole) or not (one_step or tuple(value.shape) == shape):
        raise InputError(
            f"{field} of {name} is {value.dtype} {list(value.shape)}",
            "no trace was read",
            f"record {'bool' if field in _BOOL else 'int64'} {list(shape)}, one value per row",
        )
    value = value.reshape(shape)
    return value if is_bool else value.to(torch.int64)
