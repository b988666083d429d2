"""Find a kernel by its name `module:function` and fix its identity."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from costprof.core.errors import InputError
from costprof.core.expert import ExpertClass, Kernel, Op
from costprof.profiler.importing import current_folder_importable

_KERNELS = "costprof.runtime.kernels"
_DEFAULTS: dict[tuple[str, str, str], str] = {
    # (op, activation, quantisation) -> module:function
    ("expert", "swiglu", "none"): f"{_KERNELS}.torch_ffn:swiglu",
    ("expert", "relu", "none"): f"{_KERNELS}.torch_ffn:relu",
    ("fc1", "swiglu", "none"): f"{_KERNELS}.torch_ffn:fc1",
    ("fc1", "relu", "none"): f"{_KERNELS}.torch_ffn:fc1",
    ("fc2", "swiglu", "none"): f"{_KERNELS}.torch_ffn:fc2",
    ("fc2", "relu", "none"): f"{_KERNELS}.torch_ffn:fc2",
    ("activation", "swiglu", "none"): f"{_KERNELS}.torch_ffn:silu_mul",
    ("activation", "relu", "none"): f"{_KERNELS}.torch_ffn:relu_activation",
    ("layer", "swiglu", "none"): f"{_KERNELS}.torch_grouped:grouped_swiglu",
    ("layer", "relu", "none"): f"{_KERNELS}.torch_grouped:grouped_relu",
    ("expert", "swiglu", "int4"): f"{_KERNELS}.torch_int4:swiglu_int4",
    ("fc1", "swiglu", "int4"): f"{_KERNELS}.torch_int4:fc1_int4",
    ("fc2", "swiglu", "int4"): f"{_KERNELS}.torch_int4:fc2_int4",
    ("activation", "swiglu", "int4"): f"{_KERNELS}.torch_ffn:silu_mul",
    ("pack", "swiglu", "int4"): f"{_KERNELS}.torch_int4:pack",
    ("unpack", "swiglu", "int4"): f"{_KERNELS}.torch_int4:unpack",
}
_ATTENTION = f"{_KERNELS}.torch_attention:decode_attention"


def default_kernel_name(expert: ExpertClass, op: Op) -> str:
    """Return the kernel costprof ships for `op` of `expert`.

    Raises:
        InputError: there is none; the spec has to name one.
    """
    if op == "attention" and expert.block == "attention":
        return _ATTENTION
    name = _DEFAULTS.get((op, expert.activation, expert.quantisation))
    if name is None or expert.block != "ffn":
        raise InputError(
            f"no kernel is shipped for op {op!r} of a {expert.activation} {expert.block} "
            f"with quantisation {expert.quantisation!r}",
            "the scenario cannot be planned",
            "name one as module:function under 'kernels' in the sweep spec",
        )
    return name


def resolve_kernel(name: str, config: dict[str, int] | None = None) -> Kernel:
    """Import `module:function` and return it with the hash of its source file.

    Raises:
        InputError: see `import_kernel`.
    """
    function = import_kernel(name)
    return Kernel(
        name=name,
        source_hash=_source_hash(function),
        framework=_framework(name.split(":")[0]),
        config=dict(config or {}),
    )


def import_kernel(name: str) -> Callable[..., Any]:
    """Return the function called `module:function`; the current folder is looked in too.

    Raises:
        InputError: the name is malformed, or nothing callable can be imported under it.
    """
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        raise InputError(
            f"kernel {name!r} is not of the form module:function",
            "it cannot be imported",
            "write it like package.module:function",
        )
    module_name, function_name = name.split(":")
    try:
        with current_folder_importable():
            function = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # importing runs a user's module, which can raise anything
        raise InputError(
            f"kernel {name!r} cannot be imported ({type(error).__name__}: {error})",
            "its scenarios cannot be planned",
            "install its package or correct the name",
        ) from error
    if not callable(function):
        raise InputError(f"{name!r} is not callable", "it cannot be measured", "name a function")
    found: Callable[..., Any] = function
    return found


def _source_hash(function: object) -> str:
    try:
        source = inspect.getsourcefile(inspect.unwrap(function))  # type: ignore[arg-type]
    except TypeError:
        source = None
    if source is None:
        return ""
    return hashlib.sha256(Path(source).read_bytes()).hexdigest()[:12]


def _framework(module_name: str) -> str:
    package = module_name.split(".")[0]
    package = "torch" if package == "costprof" else package
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return ""
