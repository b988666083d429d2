"""`--from-model`: run a model once and propose the sweep that its experts need.

`trace` runs it and records products by module, `shapes` recognises experts by their weights,
`scopes` looks up what ran where, `propose` makes the spec.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any

from costprof.core.errors import InputError
from costprof.profiler.from_model.propose import NO_SWEEP, propose
from costprof.profiler.from_model.trace import trace_run
from costprof.profiler.importing import current_folder_importable
from costprof.profiler.spec import SweepSpec

__all__ = ["spec_from_model"]


def spec_from_model(target: str) -> tuple[SweepSpec, list[str]]:
    """Run the model that `target` makes and return the sweep its experts need, and notes.

    `target` is `module:function`; the current folder can be imported from. The function takes no
    arguments and returns `(model, inputs)`, an `nn.Module` and a tuple, dict or single value of
    inputs, or a callable without arguments that runs the model itself. The model is put into
    evaluation mode and run once, in inference mode, under torch.profiler with shapes recorded.

    Token counts are those the experts saw and the powers of two around them. Large products that
    belong to no expert (attention, embeddings, the head) are named in the notes.

    Raises:
        InputError: the target cannot be imported, called or run, or no expert was recognised.
    """
    with current_folder_importable():
        run = _runner(target)
        try:
            trace = trace_run(run)
        except Exception as error:
            raise InputError(
                f"running the model of {target} raised {type(error).__name__}: {error}",
                NO_SWEEP,
                "make it run by itself first",
            ) from error
    return propose(trace, name=target.partition(":")[2])


def _runner(target: str) -> Callable[[], object]:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", target):
        raise InputError(
            f"{target!r} is not of the form module:function",
            NO_SWEEP,
            "write it like package.module:function",
        )
    module_name, _, function_name = target.partition(":")
    try:
        made = getattr(importlib.import_module(module_name), function_name)()
    except Exception as error:
        raise InputError(
            f"importing and calling {target} raised {type(error).__name__}: {error}",
            NO_SWEEP,
            "correct the name, or make the function run by itself without arguments",
        ) from error
    return _as_call(made, target)


def _as_call(made: Any, target: str) -> Callable[[], object]:
    from torch import nn

    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
        model, inputs = made
        model.eval()
        if isinstance(inputs, dict):
            return lambda: model(**inputs)
        if isinstance(inputs, tuple | list):
            return lambda: model(*inputs)
        return lambda: model(inputs)
    if callable(made) and not isinstance(made, nn.Module):
        return lambda: made()
    raise InputError(
        f"{target} returned {type(made).__name__}",
        NO_SWEEP,
        "return (model, inputs), or a callable without arguments that runs the model",
    )
