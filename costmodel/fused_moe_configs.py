"""A table's tile configs as the JSON file that vLLM or SGLang loads for its fused MoE kernel.

What those look up, as read in vLLM (`fused_moe.py`) and SGLang (`fused_moe_triton_config.py`):

- The name is `E=<experts>,N=<d_ff of the shard>,device_name=<GPU, spaces as _>` then
  `,dtype=<kind>` unless weights are plain bfloat16 or float16, then `,block_shape=[n,k]` where
  weights are quantised in blocks; SGLang writes a space after that comma. vLLM calls every GPU of
  the H200 family `NVIDIA_H200`; SGLang does not.
- vLLM looks in the folder `VLLM_TUNED_CONFIG_FOLDER`; SGLang in `configs/triton_<version>` below
  `SGLANG_MOE_CONFIG_DIR`, dots as _.
- The content maps the tokens of a layer's batch, before the top-k copies, to a config; every key
  must be a whole number as text. The nearest key serves a batch. One config serves both
  projections.
- The config's entries become arguments of their kernel: no others may be there. Their kernel for
  4-bit and 8-bit weights also takes SPLIT_K, which only that file can give it.

Which rows give the configs: layers measured under tile configs, where the table has any of this
shape (balanced ones first); else the experts', as if the batch were balanced: `n` tokens an
expert are `n · E / top_k` of the layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from costprof.core.errors import InputError, TableError
from costprof.core.expert import PRICED_ONLY, ExpertClass
from costprof.core.fused_moe import FUSED_MOE_NAMES
from costprof.costmodel.curves import ClassCurves, read_classes
from costprof.costmodel.manifest import Manifest, MoeSpec, TiledLayer

Format = Literal["vllm", "sglang"]

DTYPES = ("fp8_w8a8", "fp8_w8a16", "int8_w8a8", "int8_w8a16", "int4_w4a16", "float32")
"""Kinds that stand in a file name."""

_KIND_OF_QUANTISATION = {"int4": "int4_w4a16", "int8": "int8_w8a16", "fp8": "fp8_w8a8"}
_WEIGHT_ONLY = ("int4_w4a16", "int8_w8a16")
# Of costprof's own kernels; theirs have no such parameter, so only its neutral value carries over.
_NEUTRAL = {"persistent": 0, "SPLIT_K": 1}


@dataclass(frozen=True, slots=True)
class FusedMoeFile:
    """A file to write: `path` relative to the folder the server is told of, and its content.

    `source` says which rows the configs are from.
    """

    path: str
    configs: dict[str, dict[str, int]]
    source: str


def fused_moe_file(
    rows: pa.Table,
    manifest: Manifest,
    *,
    format: Format,
    moe: str | None = None,
    dtype: str | None = None,
    block_shape: tuple[int, int] | None = None,
) -> FusedMoeFile:
    """Return the file for `moe` (the only one where None).

    Args:
        dtype: Kind in the file name, one of `DTYPES` or `none`; None: by the experts' class.
        block_shape: Rows and columns of a block of quantised weights.

    Raises:
        TableError: no tile configs that those kernels take, several classes of experts, no GPU,
            weights that no sweep measures.
        InputError: an unknown dtype.
    """
    spec = manifest.moe(moe)
    if manifest.device.kind != "gpu":
        raise TableError(
            f"the table was measured on {manifest.device.name}, no GPU",
            "no file was written",
            "fit a dataset that was measured on the GPU that serves",
        )
    if len(set(spec.class_of_expert)) != 1:
        raise TableError(
            f"{spec.name} has experts of {len(set(spec.class_of_expert))} classes",
            "one file cannot hold the configs of all",
            "fit a dataset whose MoE has equal experts",
        )
    curves = read_classes(rows, spec.class_of_expert)[spec.class_of_expert[0]]
    kind = _kind(curves.expert, dtype)
    if format == "sglang" and kind == "int4_w4a16":
        raise TableError(
            "SGLang names the file of 4-bit weights by their packed width",
            "no file was written",
            "use --format vllm, and rename the file as SGLang's log asks for",
        )
    experts, configs, source = _from_layers(manifest, curves.expert, spec)
    if not configs:
        configs, source = _from_experts(curves, spec)
    if not configs:
        raise TableError(
            f"the table holds no config of {', '.join(FUSED_MOE_NAMES)} for {spec.name}",
            "no file was written",
            "measure with costprof sweep --search tiles and a kernel that has these parameters",
        )
    if kind in _WEIGHT_ONLY:
        configs = {tokens: {**config, "SPLIT_K": 1} for tokens, config in configs.items()}
    name = _file_name(experts, curves.expert, manifest.device.name, kind, block_shape, format)
    folder = ""
    if format == "sglang":
        folder = f"configs/triton_{_triton(manifest).replace('.', '_')}/"
    ordered = {str(tokens): configs[tokens] for tokens in sorted(configs)}
    return FusedMoeFile(folder + name, ordered, source)


def _kind(expert: ExpertClass, asked: str | None) -> str | None:
    if asked is not None and asked not in (*DTYPES, "none"):
        raise InputError(
            f"--dtype {asked!r} is unknown",
            "no file was written",
            f"use one of {', '.join(DTYPES)}, or none",
        )
    if asked is not None:
        return None if asked == "none" else asked
    if expert.quantisation in PRICED_ONLY:
        raise TableError(
            f"the experts' weights are {expert.quantisation}, which is priced but never swept",
            "there are no tile configs, and no file was written",
            "fit a sweep of weights that can be run here",
        )
    if expert.quantisation != "none":
        return _KIND_OF_QUANTISATION[expert.quantisation]
    return "float32" if expert.dtype == "float32" else None


def _file_name(
    experts: int,
    expert: ExpertClass,
    device: str,
    kind: str | None,
    block_shape: tuple[int, int] | None,
    format: Format,
) -> str:
    gpu = device.replace(" ", "_")
    if format == "vllm" and "H200" in gpu.split("_"):
        gpu = "NVIDIA_H200"
    name = f"E={experts},N={expert.d_ff},device_name={gpu}"
    if kind is not None:
        name += f",dtype={kind}"
    if block_shape is not None and all(block_shape):
        comma = ", " if format == "sglang" else ","
        name += f",block_shape=[{block_shape[0]}{comma}{block_shape[1]}]"
    return name + ".json"


def _triton(manifest: Manifest) -> str:
    version = manifest.software.get("triton", "")
    if not version:
        raise TableError(
            "the table does not say which triton it was measured with",
            "SGLang's folder cannot be named",
            "use --format vllm, or fit a dataset measured with triton",
        )
    return version


def _from_layers(
    manifest: Manifest, expert: ExpertClass, spec: MoeSpec
) -> tuple[int, dict[int, dict[str, int]], str]:
    """Return a rank's experts and the best config at each batch measured of one kind of layer.

    Balanced and cold layers come first; of several kinds the one measured at most token counts is
    used: configs of two do not mix. A layer of fewer experts than the MoE is that of one of `ranks`
    expert-parallel ranks, where T tokens a rank are a batch of T · ranks.
    """
    total = len(spec.class_of_expert)
    kinds: dict[tuple[bool, bool, str, str, str, int], dict[int, dict[str, int]]] = {}
    for layer in manifest.tiled_layers:
        config = _first(layer)
        if (
            config is not None
            and layer.class_fields == expert.to_dict()
            and layer.top_k == spec.top_k
            and total % layer.experts == 0
        ):
            key = (
                layer.distribution != "balanced",
                layer.cache_state != "cold",
                layer.distribution,
                layer.cache_state,
                layer.kernel,
                layer.experts,
            )
            batch = layer.tokens * (total // layer.experts)
            kinds.setdefault(key, {})[batch] = config
    if not kinds:
        return total, {}, ""
    key = min(kinds, key=lambda k: (k[:2], -len(kinds[k]), k))
    return key[5], kinds[key], f"{key[2]} layers, {key[3]} weights, by {key[4]}"


def _first(layer: TiledLayer) -> dict[str, int] | None:
    translated = (_translated(config) for config, _ in layer.configs)
    return next((config for config in translated if config is not None), None)


def _from_experts(curves: ClassCurves, spec: MoeSpec) -> tuple[dict[int, dict[str, int]], str]:
    usable = tuple(curve for curve in curves.curves if _translated(curve.config) is not None)
    if not usable:
        return {}, ""
    some = ClassCurves(curves.expert, usable, curves.kernel)
    measured = [c.tokens[np.array(c.tier) == "measured"] for c in usable]
    found: dict[int, dict[str, int]] = {}
    # Descending: where two counts fall on one batch, the smaller is the nearer.
    for tokens in sorted({int(n) for each in measured for n in each}, reverse=True):
        config = _translated(some.best(tokens).config)
        assert config is not None
        batch = round(tokens * len(spec.class_of_expert) / spec.top_k)
        found[max(batch, 1) if tokens > 1 else 1] = config
    return found, f"experts measured alone by {curves.kernel}, as in balanced batches"


def _translated(config: Mapping[str, int]) -> dict[str, int] | None:
    """Return `config` in their names; None where it lacks a parameter or has one of no meaning."""
    given = {"GROUP_M": 1, **config}
    for name, neutral in _NEUTRAL.items():
        if given.pop(name, neutral) != neutral:
            return None
    if set(given) != set(FUSED_MOE_NAMES):
        return None
    return {theirs: int(given[ours]) for ours, theirs in FUSED_MOE_NAMES.items()}
