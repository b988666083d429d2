"""Recorded router logits: the batches of one MoE layer, in the order they were routed.

A file holds tensors and nothing else, as safetensors or npz (read without pickle):

| name | shape | |
|---|---|---|
| `logits` | [steps, T, E] or [T, E] | floating point; one step where the first axis is missing |
| `real` | [steps, T] | bool, False for padding; default: all real |
| `sequence` | [steps, T] | whole numbers; default: each row of its own sequence |
| `position` | [steps, T] | whole numbers; default: 0 |
| `is_prefill` | [steps, T] | bool; default: decode |
| `gate.sigmoid` | [] | bool, True where scores are sigmoids, False for a softmax |
| `gate.bias` | [E] | floating point, added for the choice only |
| `gate.renormalise` | [] | bool |
| `gate.scaling` | [] | floating point |
| `gate.top_k`, `gate.n_group`, `gate.topk_group`, `gate.group_top` | [] | whole numbers |

A step has at most T rows; shorter ones are padded and say so in `real`. What a file does not say of
the gate (`routing.Gate`) is left to whoever reads it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file as save_safetensors
from torch import Tensor

from costprof.core.errors import InputError
from costprof.core.files import replacing
from costprof.routing.contract import Gate, Rows

_BOOL = ("real", "is_prefill")
_GATE = "gate."
_GATE_KINDS: dict[str, type] = {
    "sigmoid": bool,
    "renormalise": bool,
    "scaling": float,
    "top_k": int,
    "n_group": int,
    "topk_group": int,
    "group_top": int,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """Batches of one layer.

    Attributes:
        logits: [T, E] float32 of each step.
        rows: What the rows of each step are.
        gate: Arguments of `Gate` that the recording states.
    """

    logits: list[Tensor]
    rows: list[Rows]
    gate: Mapping[str, Any] = field(default_factory=dict)


def write_trace(
    path: Path,
    logits: Sequence[Tensor],
    *,
    rows: Sequence[Rows] | None = None,
    gate: Gate | None = None,
) -> None:
    """Write a trace to `path`, in the format of its suffix `.safetensors` or `.npz`.

    Args:
        path: Replaced where it exists.
        logits: [T, E] of each step; T may differ, shorter steps are padded.
        rows: What the rows of each step are; None: real decode rows of their own sequence.
        gate: How the layer chooses and weighs; None leaves it unsaid.

    Raises:
        InputError: a suffix of another kind, or what `load_trace` would refuse.
    """
    _check_suffix(path, "written")
    known = [Rows.decode(len(each)) for each in logits] if rows is None else rows
    if not 0 < len(logits) == len(known) or any(
        each.dim() != 2 or each.shape[1:] != logits[0].shape[1:] or len(each) != len(row.real)
        for each, row in zip(logits, known, strict=False)
    ):
        raise InputError(
            "there are no steps, they differ in their experts, or rows do not describe them",
            "no trace was written",
            "give [rows, experts] of one layer for each step, and rows of the same number",
        )
    pad = torch.nn.utils.rnn.pad_sequence
    tensors = {"logits": pad([each.detach().cpu() for each in logits], batch_first=True)}
    for name in ("real", "sequence", "position", "is_prefill"):
        tensors[name] = pad([getattr(each, name).cpu() for each in known], batch_first=True)
    tensors |= {} if gate is None else _gate_tensors(gate)
    trace_of(tensors, str(path))
    with replacing(path) as partial:
        if path.suffix == ".npz":
            tensors["logits"] = tensors["logits"].float()  # numpy has no bfloat16
            with partial.open("wb") as file:
                np.savez(file, **{name: value.numpy() for name, value in tensors.items()})  # type: ignore[arg-type]
        else:
            save_safetensors(tensors, partial)


def load_trace(path: Path) -> Trace:
    """Read the trace at `path`, by its suffix `.safetensors` or `.npz`.

    Raises:
        InputError: no such file, of another kind or damaged; tensors missing or of other shapes.
    """
    _check_suffix(path, "read")
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
    for each in known:
        if each in tensors:
            known[each] = _described(tensors[each], each, (steps, tokens), name)
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
    return Trace(logits=list(logits), rows=rows, gate=_gate_of(tensors, logits.shape[-1], name))


def _check_suffix(path: Path, done: str) -> None:
    if path.suffix not in (".safetensors", ".npz"):
        raise InputError(
            f"{path} is neither .safetensors nor .npz",
            f"no trace was {done}",
            "save the logits in one of these formats",
        )


def _gate_tensors(gate: Gate) -> dict[str, Tensor]:
    stated = {
        name: gate.score == "sigmoid" if name == "sigmoid" else getattr(gate, name)
        for name in _GATE_KINDS
    }
    tensors = {_GATE + name: torch.tensor(value) for name, value in stated.items()}
    if gate.bias is not None:
        tensors[_GATE + "bias"] = gate.bias.detach().float().cpu()
    return tensors


def _gate_of(tensors: Mapping[str, Tensor], n_experts: int, name: str) -> dict[str, Any]:
    """Arguments of `Gate` among `tensors`.

    Raises:
        InputError: one is of another type or shape, not finite, or nothing a gate has.
    """
    found: dict[str, Any] = {}
    for key in sorted(tensors):
        if not key.startswith(_GATE):
            continue
        value, argument = tensors[key], key.removeprefix(_GATE)
        kind = float if argument == "bias" else _GATE_KINDS.get(argument)
        shape = (n_experts,) if argument == "bias" else ()
        finite = not value.is_floating_point() or bool(value.isfinite().all())
        if kind is None or _kind(value) is not kind or tuple(value.shape) != shape or not finite:
            raise InputError(
                f"{key} of {name} is {value.dtype} {list(value.shape)}"
                + ("" if finite else ", not all finite"),
                "no trace was read",
                f"describe the gate by {_GATE}bias [{n_experts}] and single values of "
                + ", ".join(f"{each} ({kind.__name__})" for each, kind in _GATE_KINDS.items()),
            )
        found[argument] = value.float() if argument == "bias" else value.item()
    if "sigmoid" in found:
        found["score"] = "sigmoid" if found.pop("sigmoid") else "softmax"
    return found


def _kind(value: Tensor) -> type:
    if value.dtype == torch.bool:
        return bool
    return float if value.is_floating_point() else complex if value.is_complex() else int


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
