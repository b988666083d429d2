"""What is priced, and the numbers the pooled residual sees of it."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from costprof.core.expert import CacheState, ExpertClass, Kernel, Op, class_id
from costprof.core.work import op_work

Array = npt.NDArray[np.float64]

FEATURES = (
    "log2_tokens",
    "log2_intensity",  # operations per byte
    "log2_flops_per_token",
    "narrow_weights",  # 0 as wide as activations, 1 for 4 bits
    "half_precision",
    "warm",
    "attention",
    "elementwise",
    "single_projection",
)

# One step of a yes/no feature counts as much as a factor of 2^4 in a size.
_FLAG = 4.0
_NARROW = {"none": 0.0, "int8": 0.5, "fp8": 0.5, "fp8_block": 0.5, "int4": 1.0, "mxfp4": 1.0}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is priced: an op of an expert by a kernel under one tile config and cache state."""

    expert: ExpertClass
    op: Op
    kernel: Kernel
    cache_state: CacheState

    @property
    def class_id(self) -> str:
        """Identity of the class: everything but tokens and config."""
        return class_id(self.expert, self.op, self.kernel, self.cache_state)

    @property
    def key(self) -> str:
        """Name of the curve over tokens: class id and config."""
        return f"{self.class_id} {json.dumps(self.kernel.config, sort_keys=True)}"

    @property
    def ceiling(self) -> str:
        """Name of the arithmetic ceiling the op runs under."""
        return f"{self.expert.dtype}/{self.expert.quantisation}"

    def work(self, tokens: npt.ArrayLike) -> tuple[Array, Array]:
        """Return compulsory operations and bytes at `tokens` [n]: two [n]."""
        each = [op_work(self.expert, self.op, int(count)) for count in np.atleast_1d(tokens)]
        return np.array([w.flops for w in each]), np.array([w.bytes for w in each])

    def features(self, tokens: Array) -> Array:
        """Return [n, len(FEATURES)] at `tokens` [n]."""
        flops, size = self.work(tokens)
        flags = (
            _NARROW[self.expert.quantisation],
            self.expert.dtype != "float32",
            self.cache_state == "warm",
            self.op == "attention",
            self.op in ("activation", "pack", "unpack"),
            self.op in ("fc1", "fc2"),
        )
        columns = [np.log2(tokens), np.log2(flops / size), np.log2(flops / tokens)]
        columns += [np.full(len(tokens), _FLAG * flag) for flag in flags]
        return np.stack(columns, axis=1)
