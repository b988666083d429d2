"""Run a model once under torch.profiler and tell which module made which matrix product."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from torch.autograd.profiler_util import FunctionEvent

_RANGE = "costprof.module:"
# Operator -> position of the left factor among its inputs; the right one follows it.
_MATMULS = {
    "aten::mm": 0,
    "aten::bmm": 0,
    "aten::addmm": 1,
    "aten::_addmm_activation": 1,
    "aten::baddbmm": 1,
    "aten::_grouped_mm": 0,
}
_VECTOR_MATMULS = {"aten::mv": 0, "aten::addmv": 1}
_ACTIVATIONS = {
    "aten::silu": "silu",
    "aten::silu_": "silu",
    "aten::relu": "relu",
    "aten::relu_": "relu",
    "aten::clamp_min": "relu",
    "aten::gelu": "gelu",
    "aten::sigmoid": "sigmoid",
}
_ATTENTION = ("aten::scaled_dot_product_attention", "aten::softmax", "aten::_softmax")


@dataclass(frozen=True, slots=True)
class Matmul:
    """`[batch, rows, inner] x [batch, inner, columns]` as recorded.

    `groups` is above 0 for a grouped product: `rows` rows in all, spread over `groups` matrices.
    `scope` holds the running modules as indices into `Trace.modules`, outermost first; `number`
    is the place among all products of the run.
    """

    number: int
    batch: int
    rows: int
    inner: int
    columns: int
    groups: int
    scope: tuple[int, ...]

    def transposed(self) -> Matmul:
        """Return the same product with its two factors in the other order."""
        return replace(self, rows=self.columns, columns=self.rows)

    @property
    def flops(self) -> float:
        """Floating-point operations: two for each multiply-add."""
        return 2.0 * self.batch * self.rows * self.inner * self.columns


@dataclass(frozen=True, slots=True)
class TopK:
    """A choice of `k` among the last axis of `[rows, width]`; `k` is 0 if it was not recorded."""

    rows: int
    width: int
    k: int
    scope: tuple[int, ...]


@dataclass(slots=True)
class Trace:
    """What one run did.

    `modules` are those whose forward ran, in order of their first run, and `roots` the outermost
    of them. `activations` and `attention` hold the modules that such an op ran in, by index.
    """

    modules: list[nn.Module] = field(default_factory=list)
    roots: list[nn.Module] = field(default_factory=list)
    matmuls: list[Matmul] = field(default_factory=list)
    topks: list[TopK] = field(default_factory=list)
    activations: dict[int, set[str]] = field(default_factory=dict)
    attention: set[int] = field(default_factory=set)


def trace_run(run: Callable[[], object]) -> Trace:
    """Call `run` once in inference mode and record what it computed.

    Hooks that apply to every module open a profiler range around each forward, so that an
    operator's parents name the modules it ran in. They are removed before this returns.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    trace = Trace()
    # CUDA operators are recorded on the host with their shapes too: no device tracing is needed.
    profiler: Any = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
    with _module_ranges(trace), torch.inference_mode():
        with _quiet_stderr():
            profiler.start()
        try:
            run()
        finally:
            with _quiet_stderr():
                profiler.stop()
    _read(profiler.events() or [], trace)
    return trace


@contextlib.contextmanager
def _module_ranges(trace: Trace) -> Iterator[None]:
    from torch.nn.modules.module import (
        register_module_forward_hook,
        register_module_forward_pre_hook,
    )
    from torch.profiler import record_function

    index_of: dict[int, int] = {}
    open_ranges: list[Any] = []

    def before(module: nn.Module, args: object) -> None:
        if id(module) not in index_of:
            index_of[id(module)] = len(trace.modules)
            trace.modules.append(module)
            if not open_ranges:
                trace.roots.append(module)
        entered: Any = record_function(f"{_RANGE}{index_of[id(module)]}")
        entered.__enter__()
        open_ranges.append(entered)

    def after(module: nn.Module, args: object, output: object) -> None:
        open_ranges.pop().__exit__(None, None, None)

    hooks = [
        register_module_forward_pre_hook(before),
        register_module_forward_hook(after, always_call=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Drop what C++ writes to standard error: torch's profiler logs its start and stop there."""
    saved = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def _read(events: Iterable[FunctionEvent], trace: Trace) -> None:
    all_events = list(events)
    composite = {id(parent) for event in all_events if _is_matmul(event) for parent in _up(event)}
    for event in all_events:
        if _is_matmul(event):
            # On some devices one product is made of others: count the innermost.
            if id(event) not in composite:
                trace.matmuls += _matmul(event, len(trace.matmuls))
        elif event.name == "aten::topk":
            trace.topks += _topk(event)
        elif event.name in _ACTIVATIONS:
            for index in _scope(event):
                trace.activations.setdefault(index, set()).add(_ACTIVATIONS[event.name])
        elif event.name in _ATTENTION:
            trace.attention.update(_scope(event))


def _is_matmul(event: FunctionEvent) -> bool:
    return event.name in _MATMULS or event.name in _VECTOR_MATMULS


def _up(event: FunctionEvent) -> Iterator[FunctionEvent]:
    parent = event.cpu_parent
    while parent is not None:
        yield parent
        parent = parent.cpu_parent


def _scope(event: FunctionEvent) -> tuple[int, ...]:
    inside_out = [
        int(parent.name.removeprefix(_RANGE))
        for parent in _up(event)
        if parent.name.startswith(_RANGE)
    ]
    return tuple(reversed(inside_out))


def _matmul(event: FunctionEvent, number: int) -> list[Matmul]:
    shapes: list[Any] = list(event.input_shapes or [])
    if event.name in _VECTOR_MATMULS:
        at = _VECTOR_MATMULS[event.name]
        if len(shapes) <= at or len(shapes[at]) != 2:
            return []
        columns, inner = shapes[at]
        return [Matmul(number, 1, 1, inner, columns, 0, _scope(event))]
    at = _MATMULS[event.name]
    if len(shapes) <= at + 1:
        return []
    left, right = shapes[at], shapes[at + 1]
    if len(left) == 2 and len(right) == 2:
        return [Matmul(number, 1, left[0], left[1], right[1], 0, _scope(event))]
    if len(left) == 3 and len(right) == 3:
        return [Matmul(number, left[0], left[1], left[2], right[2], 0, _scope(event))]
    if len(left) == 2 and len(right) == 3:
        return [Matmul(number, 1, left[0], left[1], right[2], right[0], _scope(event))]
    return []


def _topk(event: FunctionEvent) -> list[TopK]:
    shapes: list[Any] = list(event.input_shapes or [])
    if not shapes or not shapes[0]:
        return []
    *leading, width = shapes[0]
    values = getattr(event, "concrete_inputs", None) or []
    k = values[1] if len(values) > 1 and isinstance(values[1], int) else 0
    return [TopK(math.prod(leading), width, k, _scope(event))]
