"""What an expert is: the shape, arithmetic and storage that decide its cost."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from costprof.core.errors import InputError
from costprof.core.hashing import content_id

Block = Literal["ffn", "attention"]
Activation = Literal["swiglu", "relu", "none"]
Dtype = Literal["float32", "bfloat16", "float16"]
Quantisation = Literal["none", "int8", "int4", "fp8", "fp8_block", "mxfp4"]
CacheState = Literal["cold", "warm"]
Op = Literal["expert", "fc1", "activation", "fc2", "pack", "unpack", "attention", "layer"]

DTYPE_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
INT4_GROUP_SIZE = 64
"""Input channels that share one scale in the 4-bit weight-only format."""
FP8_BLOCK_SIZE = 128
"""Rows and columns of the block of fp8 weights that shares one float32 scale in `fp8_block`."""
MXFP4_GROUP_SIZE = 32
"""Input channels that share one power-of-two scale, a byte, in `mxfp4` (OCP MX 1.0, 5.3)."""
PRICED_ONLY = ("fp8_block", "mxfp4")
"""Formats that measurements made elsewhere are in and no kernel of ours runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertClass:
    """Experts that cost the same: everything about one but its weights' values.

    An FFN uses `d_model`, `d_ff` and `activation`; an attention block uses `d_model`, the head
    fields and `context_len` (the cached tokens each query attends to) and has `d_ff` 0.

    Raises:
        InputError: on sizes below one or fields that contradict each other.
    """

    block: Block = "ffn"
    d_model: int
    d_ff: int = 0
    activation: Activation = "swiglu"
    dtype: Dtype = "bfloat16"
    quantisation: Quantisation = "none"
    n_heads: int = 0
    n_kv_heads: int = 0
    head_dim: int = 0
    context_len: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("block", get_args(Block)),
            ("activation", get_args(Activation)),
            ("dtype", get_args(Dtype)),
            ("quantisation", get_args(Quantisation)),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise InputError(
                    f"{name} {value!r} is unknown",
                    "the expert class cannot be built",
                    f"use one of {', '.join(allowed)}",
                )
        if self.block == "ffn":
            needed = {"d_model": self.d_model, "d_ff": self.d_ff}
        else:
            needed = {
                "d_model": self.d_model,
                "n_heads": self.n_heads,
                "n_kv_heads": self.n_kv_heads,
                "head_dim": self.head_dim,
                "context_len": self.context_len,
            }
        for name, value in needed.items():
            if value < 1:
                raise InputError(
                    f"{name} is {value}",
                    f"a block of kind {self.block} cannot be built",
                    f"give {name} as a whole number of at least 1",
                )
        if self.quantisation != "none" and self.block != "ffn":
            raise InputError(
                f"{self.quantisation} with block {self.block}",
                "its weights cannot be packed",
                "use an ffn, or quantisation none",
            )
        if self.quantisation == "int4" and (
            self.d_model % INT4_GROUP_SIZE or self.d_ff % INT4_GROUP_SIZE
        ):
            raise InputError(
                f"int4 with d_model {self.d_model} and d_ff {self.d_ff}",
                "the weights cannot be packed",
                f"use a d_model and d_ff that are multiples of {INT4_GROUP_SIZE}",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A callable that computes an op, named `module:function`, and what fixes its behaviour.

    `source_hash` is the hash of the source file of the function, `framework` the library and
    version that runs it (for example `torch 2.13.0`); both enter the class, because two versions
    of one kernel can differ several-fold. `config` holds tile parameters.
    """

    name: str
    source_hash: str = ""
    framework: str = ""
    config: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerClass:
    """A whole grouped layer of equal experts: `counts[e]` tokens go to expert `e`.

    `ep_size` and `tp_size` are the expert- and tensor-parallel degrees of the shard measured.
    `distribution` names how the counts were made (for example `balanced`, `zipf-1.2`).
    """

    experts: int
    top_k: int
    counts: tuple[int, ...]
    distribution: str
    ep_size: int = 1
    tp_size: int = 1

    def __post_init__(self) -> None:
        if len(self.counts) != self.experts or min(self.counts, default=-1) < 0:
            raise InputError(
                f"{len(self.counts)} token counts for {self.experts} experts",
                "the layer cannot be built",
                "give one count of at least 0 per expert",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {**dataclasses.asdict(self), "counts": list(self.counts)}


def refuse_priced_only(expert: ExpertClass) -> None:
    """Check that the weights of `expert` are in a format that can be run here.

    Raises:
        InputError: they are in one of `PRICED_ONLY`.
    """
    if expert.quantisation in PRICED_ONLY:
        raise InputError(
            f"quantisation {expert.quantisation} can be priced but not run",
            "no kernel was chosen and nothing was measured",
            "use fp8 or int4, or take measurements made elsewhere in with costprof ingest",
        )


def class_id(expert: ExpertClass, op: Op, kernel: Kernel, cache_state: str) -> str:
    """Return the identity of all scenarios that differ only in tokens and tile config.

    Of a layer it names the experts' class and kernel; experts, top-k, shard and token counts
    are columns of their own.
    """
    return content_id(
        {
            "expert": expert.to_dict(),
            "op": op,
            "kernel": kernel.name,
            "source": kernel.source_hash,
            "framework": kernel.framework,
            "cache_state": cache_state,
        }
    )
