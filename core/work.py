"""Floating-point operations and bytes an op must move: arithmetic from shapes alone.

Bytes are compulsory traffic: each weight read once, each input read once, each output written
once. What a real kernel moves beyond that (padding, re-reads, spills) is for the cost model to
learn or a counter to show.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from costprof.core.expert import (
    DTYPE_BYTES,
    FP8_BLOCK_SIZE,
    INT4_GROUP_SIZE,
    MXFP4_GROUP_SIZE,
    ExpertClass,
    Op,
)

_SCALE_BYTES = 4


@dataclass(frozen=True, slots=True)
class Work:
    """Compulsory work of one call: operations, and bytes by kind."""

    flops: float
    weight_bytes: float
    activation_bytes: float

    @property
    def bytes(self) -> float:
        """All compulsory bytes."""
        return self.weight_bytes + self.activation_bytes

    def __add__(self, other: Work) -> Work:
        return Work(
            self.flops + other.flops,
            self.weight_bytes + other.weight_bytes,
            self.activation_bytes + other.activation_bytes,
        )


def weight_bytes(expert: ExpertClass, rows: int, columns: int) -> float:
    """Bytes of a stored [rows, columns] weight, scales of narrow formats included."""
    count = rows * columns
    if expert.quantisation == "int4":
        return count / 2 + count / INT4_GROUP_SIZE * _SCALE_BYTES
    if expert.quantisation in ("int8", "fp8"):
        return float(count + rows * _SCALE_BYTES)
    if expert.quantisation == "fp8_block":
        blocks = math.ceil(rows / FP8_BLOCK_SIZE) * math.ceil(columns / FP8_BLOCK_SIZE)
        return float(count + blocks * _SCALE_BYTES)
    if expert.quantisation == "mxfp4":
        return count / 2 + rows * math.ceil(columns / MXFP4_GROUP_SIZE)
    return float(count * DTYPE_BYTES[expert.dtype])


def expert_weight_bytes(expert: ExpertClass) -> float:
    """Bytes of all weights of one expert (or attention block) as stored."""
    if expert.block == "attention":
        heads = expert.n_heads + 2 * expert.n_kv_heads
        return weight_bytes(expert, heads * expert.head_dim, expert.d_model) + weight_bytes(
            expert, expert.d_model, expert.n_heads * expert.head_dim
        )
    return weight_bytes(expert, fc1_width(expert), expert.d_model) + weight_bytes(
        expert, expert.d_model, expert.d_ff
    )


def fc1_width(expert: ExpertClass) -> int:
    """Output width of the first projection: gate and up side by side for SwiGLU."""
    return 2 * expert.d_ff if expert.activation == "swiglu" else expert.d_ff


def op_work(expert: ExpertClass, op: Op, tokens: int) -> Work:
    """Compulsory work of `op` on `tokens` tokens; a layer's is the sum over its active experts."""
    size = DTYPE_BYTES[expert.dtype]
    wide = fc1_width(expert)
    if op == "fc1":
        return Work(
            2.0 * tokens * expert.d_model * wide,
            weight_bytes(expert, wide, expert.d_model),
            float(tokens * (expert.d_model + wide) * size),
        )
    if op == "activation":
        per_value = 5 if expert.activation == "swiglu" else 1
        return Work(
            float(per_value * tokens * expert.d_ff),
            0.0,
            float(tokens * (wide + expert.d_ff) * size),
        )
    if op == "fc2":
        return Work(
            2.0 * tokens * expert.d_model * expert.d_ff,
            weight_bytes(expert, expert.d_model, expert.d_ff),
            float(tokens * (expert.d_model + expert.d_ff) * size),
        )
    if op in ("pack", "unpack"):
        values = wide * expert.d_model + expert.d_model * expert.d_ff
        dense = float(values * size)
        return Work(2.0 * values, dense + expert_weight_bytes(expert), 0.0)
    if op == "attention":
        return _attention_work(expert, tokens, size)
    parts = [op_work(expert, part, tokens) for part in ("fc1", "activation", "fc2")]
    return parts[0] + parts[1] + parts[2]


def _attention_work(expert: ExpertClass, tokens: int, size: int) -> Work:
    query_width = expert.n_heads * expert.head_dim
    kv_width = expert.n_kv_heads * expert.head_dim
    projections = expert.d_model * (2 * query_width + 2 * kv_width)
    scores = 2 * query_width * expert.context_len
    return Work(
        2.0 * tokens * (projections + scores),
        expert_weight_bytes(expert),
        float(tokens * (2 * expert.d_model + 2 * kv_width * expert.context_len) * size),
    )
