"""From the `config.json` of a Mixture-of-Experts model to the sweep its experts need.

The keys are those of Hugging Face configs. What a config says but an `ExpertClass` cannot express
(biases, clamps, 8-bit weights, latent attention) is measured without it and named in a note.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from costprof.core.errors import InputError
from costprof.core.expert import (
    DTYPE_BYTES,
    INT4_GROUP_SIZE,
    Activation,
    Dtype,
    Quantisation,
)
from costprof.core.work import expert_weight_bytes
from costprof.profiler.model_config import ConfigReader, quantisation_method
from costprof.profiler.spec import (
    ExpertRun,
    ExpertSpec,
    LayerSpec,
    MeasureSpec,
    MoeSpec,
    SweepSpec,
)

# Decode hands an expert a few tokens, prefill hundreds; between powers of two, 1.5 times the lower
# one shows where a kernel's cost steps with its tile size.
EXPERT_TOKENS = [1, 2, 3, *(n for p in range(2, 12) for n in (2**p, 3 * 2 ** (p - 1))), 4096]
LAYER_TOKENS = [2**p for p in range(13)]
PART_TOKENS = [1, 16, 128, 1024]
# Where kernels, tile configs and skews are compared: decode, a large batch, prefill.
COMPARED_TOKENS = [16, 256, 2048]
_TILES = 4
_ACTIVE_STUDY_TOKENS = 16
_CONTEXT_LEN = 4096
_CACHE_BYTES_LIMIT = 2**31
_LARGE_LAYER_BYTES = 8 * 2**30

_HIDDEN = ("hidden_size", "d_model")
_WIDTH = ("moe_intermediate_size", "expert_intermediate_size", "intermediate_size")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_TOP_K = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_k", "moe_topk")
_HEADS = ("num_attention_heads",)
_KV_HEADS = ("num_key_value_heads",)
_SHARED_WIDTH = ("shared_expert_intermediate_size",)
_SHARED_COUNT = ("n_shared_experts", "moe_num_shared_experts")
_ACTIVATION = ("hidden_act", "hidden_activation", "mlp_hidden_act")
_SILU = ("silu", "swish")
_UNGATED = ("relu", "relu2")
_DTYPES: dict[str, Dtype] = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
}
_INT4_SCALES = f"groups of {INT4_GROUP_SIZE}"
_PACKED: dict[tuple[str, float], tuple[Quantisation, str]] = {
    ("awq", 4.0): ("int4", _INT4_SCALES),
    ("gptq", 4.0): ("int4", _INT4_SCALES),
    ("gptq", 8.0): ("int8", "one scale an output channel"),
    ("fp8", 8.0): ("fp8", "one scale an output channel"),
}
_Block = tuple[ExpertSpec, MeasureSpec]


def spec_from_config(
    config: Mapping[str, Any],
    *,
    name: str,
    source: str | None = None,
    ep_size: int = 1,
    tp_size: int = 1,
) -> tuple[SweepSpec, list[str]]:
    """Return the sweep for the experts of one MoE layer, and notes on what it leaves out.

    The sweep holds the routed expert at 1 to 4096 tokens with cold weights, its three ops at some
    of them, the grouped layer under balanced and Zipf counts and with few experts active, beside
    it torch's grouped product and a loop over experts as baselines, a few tile configs of kernels
    that have any, a shared expert of another width, and the attention block in decode.

    Args:
        config: The parsed `config.json`.
        name: Name of the sweep and of the MoE in the cost table.
        source: What errors call the config, by default `name`.
        ep_size: Expert-parallel degree: a layer holds `experts / ep_size` of the experts. Where
            each of the `ep_size` ranks brings T tokens, one rank's experts receive
            `T * top_k` assignments on average, so the layer's token counts stay those of a rank.
        tp_size: Tensor-parallel degree: d_ff and the heads are divided by it.

    Raises:
        InputError: keys are missing or not numbers, the model is dense, or the degrees do not
            divide its sizes.
    """
    reader = ConfigReader(config, source or name)
    experts = reader.number(_EXPERTS, dense_if_missing=True)
    top_k = reader.number(_TOP_K)
    local = _local_experts(reader, experts, top_k, ep_size)
    notes: list[str] = []
    expert = _expert(reader, tp_size, notes)
    classes = {"expert": expert}
    measure = [
        MeasureSpec(expert="expert", ops=["expert"], tokens=EXPERT_TOKENS),
        MeasureSpec(expert="expert", tokens=COMPARED_TOKENS, tiles=_TILES),
        MeasureSpec(expert="expert", ops=["fc1", "activation", "fc2"], tokens=PART_TOKENS),
    ]
    dense = "expert"
    if expert.quantisation != "none":
        dense = "expert-dense"  # torch's own layers, the baselines, take no packed weights
        classes[dense] = expert.model_copy(update={"quantisation": "none"})
    blocks = {
        "shared": _shared(reader, expert, tp_size, notes),
        "attention": _attention(reader, expert, tp_size, notes),
    }
    for label, block in blocks.items():
        if block is not None:
            classes[label], entry = block
            measure.append(entry)
    _note_architecture(reader, notes)
    _note_size(classes[dense], local, notes)
    spec = SweepSpec(
        name=name,
        experts=classes,
        measure=measure,
        layer=_layers(dense, expert.activation, local, top_k, ep_size=ep_size, tp_size=tp_size),
        moe=[MoeSpec(name=name, top_k=top_k, experts=[ExpertRun(expert="expert", count=experts)])],
    )
    return spec, notes


def _local_experts(reader: ConfigReader, experts: int, top_k: int, ep_size: int) -> int:
    if top_k > experts:
        raise InputError(
            f"{reader.name}: top-k {top_k} is above its {experts} experts",
            "no sweep can be made of it",
            "correct the config",
        )
    local = _divided(experts, ep_size, "experts", "ep", reader.name)
    if top_k > local:
        raise InputError(
            f"{reader.name}: ep {ep_size} leaves {local} experts a rank, fewer than its top-k "
            f"{top_k}",
            "such a layer cannot be laid out",
            f"use an ep of at most {experts // top_k}",
        )
    return local


def _expert(reader: ConfigReader, tp_size: int, notes: list[str]) -> ExpertSpec:
    expert = ExpertSpec(
        d_model=reader.number(_HIDDEN),
        d_ff=_divided(reader.number(_WIDTH), tp_size, "expert width", "tp", reader.name),
        activation=_activation(reader, notes),
        dtype=_dtype(reader, notes),
    )
    return expert.model_copy(update={"quantisation": _quantisation(reader, expert, notes)})


def _layers(
    dense: str, activation: Activation, experts: int, top_k: int, *, ep_size: int, tp_size: int
) -> list[LayerSpec]:
    grouped_mm = f"costprof.runtime.kernels.torch_grouped_mm:grouped_mm_{activation}"
    loop = f"costprof.runtime.kernels.torch_grouped:grouped_{activation}"
    whole = LayerSpec(
        expert="expert",
        experts=experts,
        top_k=top_k,
        tokens=LAYER_TOKENS,
        distributions=["balanced", "zipf-1.2"],
        ep_size=ep_size,
        tp_size=tp_size,
    )
    skewed = whole.model_copy(
        update={"tokens": COMPARED_TOKENS, "distributions": ["zipf-1.0"], "tiles": _TILES}
    )
    library = whole.model_copy(update={"expert": dense})
    baselines = [
        library.model_copy(update={"distributions": ["balanced"], "kernel": grouped_mm}),
        library.model_copy(update={"tokens": COMPARED_TOKENS, "kernel": grouped_mm}),
        library.model_copy(update={"tokens": COMPARED_TOKENS, "kernel": loop}),
    ]
    # The price of one more active expert; all of them active is the balanced layer above.
    doubled = itertools.takewhile(lambda n: n < experts, (top_k * 2**p for p in itertools.count()))
    active = [f"active-{n}" for n in doubled]
    few = whole.model_copy(update={"tokens": [_ACTIVE_STUDY_TOKENS], "distributions": active})
    return [whole, *([few] if active else []), skewed, *baselines]


def _dtype(reader: ConfigReader, notes: list[str]) -> Dtype:
    stated = reader.text(("torch_dtype", "dtype"))
    known = _DTYPES.get(stated.removeprefix("torch.")) if stated else None
    if known is not None:
        return known
    said = f"dtype {stated!r} is not one of ours" if stated else "no dtype is stated"
    notes.append(f"{said}: measured as bfloat16")
    return "bfloat16"


def _activation(reader: ConfigReader, notes: list[str]) -> Activation:
    stated = reader.text(_ACTIVATION)
    if stated is None:
        notes.append("no activation is stated: measured as SwiGLU")
        return "swiglu"
    if stated.lower() in _UNGATED:
        notes.append(f"activation {stated!r} is measured as an FFN of two matrices with ReLU")
        return "relu"
    if stated.lower() not in _SILU:
        notes.append(f"activation {stated!r} is measured as SwiGLU: same matrices, other function")
    return "swiglu"


def _quantisation(reader: ConfigReader, expert: ExpertSpec, notes: list[str]) -> Quantisation:
    found = quantisation_method(reader.config)
    if found is None:
        return "none"
    method, bits = found
    kind, scales = _PACKED.get((method, bits), ("none", ""))
    if kind == "int4" and (expert.d_model % INT4_GROUP_SIZE or expert.d_ff % INT4_GROUP_SIZE):
        kind = "none"
    if kind != "none":
        notes.append(f"{method} weights are measured as {kind} with {scales}")
        return kind
    dense_bits = 8 * DTYPE_BYTES[expert.dtype]
    ratio = f", which reads {dense_bits / bits:.3g} times the bytes" if bits else ""
    notes.append(f"{method} weights have no kernel here: measured as {expert.dtype}{ratio}")
    return "none"


def _shared(
    reader: ConfigReader, expert: ExpertSpec, tp_size: int, notes: list[str]
) -> _Block | None:
    width = reader.optional_number(_SHARED_WIDTH)
    if width is None:
        count = reader.optional_number(_SHARED_COUNT) or 0
        width = count * reader.number(_WIDTH)
    if width == 0:
        return None
    d_ff = _divided(width, tp_size, "shared expert width", "tp", reader.name)
    if d_ff == expert.d_ff:
        notes.append("the shared expert is of the routed experts' class; routing does not price it")
        return None
    notes.append("the shared expert is measured as class 'shared'; routing does not price it")
    block = expert.model_copy(update={"d_ff": d_ff, "quantisation": "none"})
    return block, MeasureSpec(expert="shared", tokens=LAYER_TOKENS)


def _attention(
    reader: ConfigReader, expert: ExpertSpec, tp_size: int, notes: list[str]
) -> _Block | None:
    if reader.has("kv_lora_rank"):
        notes.append("latent attention (MLA) cannot be expressed: no attention block is measured")
        return None
    heads = reader.optional_number(_HEADS)
    if not heads:
        notes.append("no num_attention_heads is stated: no attention block is measured")
        return None
    kv_heads = reader.optional_number(_KV_HEADS) or heads
    longest = reader.optional_number(("max_position_embeddings",)) or _CONTEXT_LEN
    block = ExpertSpec(
        block="attention",
        d_model=expert.d_model,
        activation="none",
        dtype=expert.dtype,
        n_heads=_divided(heads, tp_size, "attention heads", "tp", reader.name),
        # With fewer KV heads than ranks, each rank keeps a copy of one.
        n_kv_heads=max(1, kv_heads // tp_size),
        head_dim=reader.optional_number(("head_dim",)) or max(1, expert.d_model // heads),
        context_len=min(_CONTEXT_LEN, longest),
    )
    window = reader.optional_number(("sliding_window",))
    slides = reader.config.get("use_sliding_window") is not False
    if window and slides and window < block.context_len:
        notes.append(
            f"layers with a sliding window of {window} are measured at the full context of "
            f"{block.context_len}"
        )
    size = DTYPE_BYTES[block.dtype]
    cache_bytes = 2 * block.n_kv_heads * block.head_dim * block.context_len * size
    tokens = [n for n in LAYER_TOKENS if n == 1 or n * cache_bytes <= _CACHE_BYTES_LIMIT]
    return block, MeasureSpec(expert="attention", ops=["attention"], tokens=tokens)


def _note_architecture(reader: ConfigReader, notes: list[str]) -> None:
    config = reader.config
    if config.get("swiglu_limit") is not None:
        notes.append(f"the clamp of gate and up to {config['swiglu_limit']} is left out")
    if config.get("model_type") == "gpt_oss":
        notes.append("expert biases and attention sinks are left out")
    dense = reader.optional_number(("first_k_dense_replace",)) or 0
    if isinstance(config.get("mlp_only_layers"), list):
        dense = max(dense, len(config["mlp_only_layers"]))
    if dense:
        notes.append(f"{dense} layers have a dense FFN instead of experts: it is not measured")


def _note_size(expert: ExpertSpec, local: int, notes: list[str]) -> None:
    size_bytes = local * expert_weight_bytes(expert.to_class())
    if size_bytes > _LARGE_LAYER_BYTES:
        notes.append(
            f"one copy of a layer's {local} experts takes {size_bytes / 2**30:.1f} GiB; a larger "
            "--ep or --tp measures the shard of one rank"
        )


def _divided(value: int, degree: int, what: str, option: str, name: str) -> int:
    if degree < 1:
        raise InputError(
            f"{option} is {degree}", "the model cannot be sharded", "give a degree of at least 1"
        )
    if value % degree:
        raise InputError(
            f"{name}: {option} {degree} does not divide its {value} ({what})",
            "the shards would differ",
            f"choose an {option} that divides {value}",
        )
    return value // degree
