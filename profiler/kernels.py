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
from costprof.core.expert import ExpertClass, Kernel, Op, refuse_priced_only
from costprof.profiler.importing import current_folder_importable
from costprof.profiler.scenario import DeviceName

_KERNELS = "costprof.runtime.kernels"
_PACKED = ("int8", "int4", "fp8")
_TORCH: dict[tuple[str, str, bool], str] = {
    # (op, activation, packed weights) -> module:function
    ("expert", "swiglu", False): "torch_ffn:swiglu",
    ("expert", "relu", False): "torch_ffn:relu",
    ("fc1", "swiglu", False): "torch_ffn:fc1",
    ("fc1", "relu", False): "torch_ffn:fc1",
    ("fc2", "swiglu", False): "torch_ffn:fc2",
    ("fc2", "relu", False): "torch_ffn:fc2",
    ("activation", "swiglu", False): "torch_ffn:silu_mul",
    ("activation", "relu", False): "torch_ffn:relu_activation",
    ("layer", "swiglu", False): "torch_grouped:grouped_swiglu",
    ("layer", "relu", False): "torch_grouped:grouped_relu",
    ("layer", "swiglu", True): "torch_packed:grouped_swiglu",
    ("layer", "relu", True): "torch_packed:grouped_relu",
    ("expert", "swiglu", True): "torch_packed:swiglu",
    ("expert", "relu", True): "torch_packed:relu",
    ("fc1", "swiglu", True): "torch_packed:linear",
    ("fc1", "relu", True): "torch_packed:linear",
    ("fc2", "swiglu", True): "torch_packed:linear",
    ("fc2", "relu", True): "torch_packed:linear",
    ("activation", "swiglu", True): "torch_ffn:silu_mul",
    ("activation", "relu", True): "torch_ffn:relu_activation",
    ("unpack", "swiglu", True): "torch_packed:unpack",
    ("unpack", "relu", True): "torch_packed:unpack",
}
_TRITON: dict[tuple[str, str], str] = {
    # (op, activation) -> module:function, for weights of any storage
    ("expert", "swiglu"): "triton_experts:swiglu",
    ("expert", "relu"): "triton_experts:relu",
    ("fc1", "swiglu"): "triton_experts:linear",
    ("fc1", "relu"): "triton_experts:linear",
    ("fc2", "swiglu"): "triton_experts:linear",
    ("fc2", "relu"): "triton_experts:linear",
    ("layer", "swiglu"): "triton_experts:grouped_swiglu",
    ("layer", "relu"): "triton_experts:grouped_relu",
}
_ATTENTION = f"{_KERNELS}.torch_attention:decode_attention"


def default_kernel_name(expert: ExpertClass, op: Op, device: DeviceName) -> str:
    """Return the kernel costprof ships for `op` of `expert`: in Triton on a GPU, if there is one.

    Raises:
        InputError: there is none; the spec has to name one.
    """
    refuse_priced_only(expert)
    if op == "attention" and expert.block == "attention":
        return _ATTENTION
    packed = expert.quantisation in _PACKED
    name = _TORCH.get((op, expert.activation, packed))
    if device == "cuda" and (expert.quantisation != "fp8" or _multiplies_fp8()):
        name = _TRITON.get((op, expert.activation), name)
    if op == "pack" and packed:
        name = f"torch_packed:pack_to_{expert.quantisation}"
    if name is None or expert.block != "ffn":
        raise InputError(
            f"no kernel is shipped for op {op!r} of a {expert.activation} {expert.block} "
            f"with quantisation {expert.quantisation!r} on {device}",
            "the scenario cannot be planned",
            "name one as module:function under 'kernels' in the sweep spec",
        )
    return f"{_KERNELS}.{name}"


def _multiplies_fp8() -> bool:
    """Whether the GPU has fp8 tensor cores, from compute capability 8.9 on; where none is, yes."""
    import torch

    return not torch.cuda.is_available() or torch.cuda.get_device_capability() >= (8, 9)


def resolve_kernel(name: str, config: dict[str, int] | None = None) -> Kernel:
    """Import `module:function` and return it with the hash of its source file.

    Raises:
        InputError: see `import_kernel`.
    """
    function = import_kernel(name)
    return Kernel(
        name=name,
        source_hash=_source_hash(function),
        # What runs an adapter of ours is the library it calls.
        framework=_framework(getattr(function, "framework", name.split(":")[0])),
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
    """Hash the file of `function`, and of the modules that its attribute `sources` names."""
    try:
        source = inspect.getsourcefile(inspect.unwrap(function))  # type: ignore[arg-type]
    except TypeError:
        source = None
    if source is None:
        return ""
    files = [source]
    files += [str(importlib.import_module(n).__file__) for n in getattr(function, "sources", ())]
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()[:12]


def _framework(module_name: str) -> str:
    package = module_name.split(".")[0]
    package = "torch" if package == "costprof" else package
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return ""
