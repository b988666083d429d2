"""One thing to measure: an op of an expert class, on so many tokens, by a named kernel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from costprof.core.errors import InputError
from costprof.core.expert import (
    CacheState,
    ExpertClass,
    Kernel,
    LayerClass,
    Op,
    class_id,
    refuse_priced_only,
)
from costprof.core.hashing import content_id
from costprof.core.work import Work, op_work

DeviceName = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A scenario is defined by its fields alone; `scenario_id` is their hash.

    `tokens` are the rows given to the op; for a layer, the tokens before the top-k copies.

    Raises:
        InputError: fewer than one token, a layer op without token counts, or weights in a format
            that cannot be run.
    """

    expert: ExpertClass
    op: Op
    tokens: int
    cache_state: CacheState
    kernel: Kernel
    device: DeviceName
    layer: LayerClass | None = None

    def __post_init__(self) -> None:
        refuse_priced_only(self.expert)
        if self.tokens < 1:
            raise InputError(
                f"tokens is {self.tokens}",
                "there is nothing to measure",
                "give token counts as whole numbers of at least 1",
            )
        if (self.op == "layer") != (self.layer is not None):
            raise InputError(
                f"op {self.op!r} {'lacks' if self.op == 'layer' else 'has'} a layer's token counts",
                "the scenario is ambiguous",
                "give counts to op 'layer' and to no other",
            )

    @cached_property
    def scenario_id(self) -> str:
        """Hash of all that defines the scenario."""
        return content_id(self.to_dict())

    @cached_property
    def class_id(self) -> str:
        """Identity shared by the scenarios that differ only in tokens and tile config."""
        return class_id(self.expert, self.op, self.kernel, self.cache_state)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {
            "expert": self.expert.to_dict(),
            "op": self.op,
            "tokens": self.tokens,
            "cache_state": self.cache_state,
            "kernel": self.kernel.to_dict(),
            "device": self.device,
            "layer": self.layer.to_dict() if self.layer else None,
        }

    def work(self) -> Work:
        """Compulsory work of one call; a layer's is the sum over its active experts."""
        if self.layer is None:
            return op_work(self.expert, self.op, self.tokens)
        total = Work(0.0, 0.0, 0.0)
        for count in self.layer.counts:
            if count:
                total = total + op_work(self.expert, "expert", count)
        return total

    def label(self) -> str:
        """Name a person can read, for progress and error lines."""
        shape = f"{self.expert.d_model}x{self.expert.d_ff}"
        if self.expert.block == "attention":
            shape = f"{self.expert.d_model}/{self.expert.n_heads}h/{self.expert.context_len}ctx"
        kind = self.expert.dtype if self.expert.quantisation == "none" else self.expert.quantisation
        counts = f" {self.layer.distribution}" if self.layer else ""
        return f"{self.op} {shape} {kind} T={self.tokens}{counts} {self.cache_state}"
