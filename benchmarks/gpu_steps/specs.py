"""Sweep files that the steps write for themselves, once: a sweep goes on only with an equal one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from costprof.core.files import write_text
from costprof.profiler.presets import load_preset
from costprof.profiler.spec import SweepSpec

EXPERT_PARALLEL = {"DeepSeek-V3": 16}
VLLM = "costprof.runtime.kernels.vllm_fused_moe:fused_swiglu"
_VLLM_TOKENS = [1, 4, 16, 64, 256, 2048]


def model_spec(model: str) -> SweepSpec:
    """Return the sweep of a named model, or of the shard of it that fits one GPU."""
    return load_preset(model, ep_size=EXPERT_PARALLEL.get(model, 1))[0]


def vllm_spec(model: str) -> SweepSpec:
    """Return our layers beside vLLM's fused experts, in the same runs, on unpacked weights."""
    spec = model_spec(model)
    dense = "expert-dense" if "expert-dense" in spec.experts else "expert"
    ours = spec.layer[0].model_copy(update={"expert": dense, "tokens": _VLLM_TOKENS})
    theirs = ours.model_copy(update={"kernel": VLLM})
    experts = {dense: spec.experts[dense]}
    return SweepSpec(name=f"{spec.name}-vllm", experts=experts, layer=[ours, theirs])


def write_spec(path: Path, spec: SweepSpec) -> None:
    """Write `spec` as the sweep file `path`."""
    values = spec.model_dump(exclude_none=True)
    write_text(path, "".join(f"{key} = {_toml(value)}\n" for key, value in values.items()))


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    return json.dumps(value, ensure_ascii=False)  # numbers, strings and booleans are written alike
