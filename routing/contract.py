"""The words of routing: what a router is told, and what it answers.

Routing is functions over tensors: no I/O, no clocks, no globals. What a policy knows of the
machine or of earlier batches enters as an argument and comes back as a result.

T is rows of a batch, E experts of the layer, k the gate's top_k.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from costprof.core.errors import InputError
from costprof.costmodel.table import CostTable, LayerCost
from costprof.routing.parameters import MOST, check_number, check_whole

Stage = Literal["cool", "warm", "hot", "critical"]
_NO_GATE = "the gate cannot be built"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gate:
    """How router logits become scores, a choice of k experts, and their weights.

    Scores are computed in float32. An expert is chosen by its score plus `bias`, among the
    `topk_group` best of `n_group` equal groups of neighbouring experts (a group is as good as the
    sum of its `group_top` best), and weighted by its score alone. `renormalise` divides the k
    weights by their sum; `scaling` multiplies them.

    | model | score | renormalise | groups | scaling |
    |---|---|---|---|---|
    | Mixtral, Qwen3-MoE, gpt-oss | softmax | yes | - | 1 |
    | OLMoE | softmax | no | - | 1 |
    | DeepSeek-V3 | sigmoid, with `bias` | yes | 4 of 8 | 2.5 |

    (gpt-oss takes the softmax over the chosen logits, which is the softmax over all, renormalised.
    DeepSeek-V3: arXiv 2412.19437, section 2.1.2.)

    Args:
        bias: [E], added for the choice only.

    Raises:
        InputError: on sizes that are not whole numbers of at least 1, more groups chosen than
            there are, or a `scaling` that is no number.
    """

    top_k: int
    score: Literal["softmax", "sigmoid"] = "softmax"
    renormalise: bool = True
    bias: Tensor | None = None
    n_group: int = 1
    topk_group: int = 1
    group_top: int = 2
    scaling: float = 1.0

    def __post_init__(self) -> None:
        if self.score not in ("softmax", "sigmoid"):
            raise InputError(
                f"score {self.score!r} is unknown",
                _NO_GATE,
                "use softmax or sigmoid",
            )
        for name in ("top_k", "n_group", "topk_group", "group_top"):
            check_whole(name, getattr(self, name), 1, consequence=_NO_GATE)
        check_number("scaling", self.scaling, -MOST, consequence=_NO_GATE)
        if self.topk_group > self.n_group:
            raise InputError(
                f"topk_group {self.topk_group} of {self.n_group} groups",
                _NO_GATE,
                "choose at most as many groups as there are",
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """What each row of a batch is. All fields are [T].

    Attributes:
        real: bool, False for padding.
        sequence: int64, which sequence the token belongs to.
        position: int64, where in it the token stands.
        is_prefill: bool, True for tokens of a prompt.
        distinct: The caller knows that no two real rows share a sequence; saves looking.
        decode_only: The caller knows that all rows are real decode rows, each of its own sequence.

    Raises:
        InputError: the fields differ in shape or have another type.
    """

    real: Tensor
    sequence: Tensor
    position: Tensor
    is_prefill: Tensor
    distinct: bool = False
    decode_only: bool = False

    def __post_init__(self) -> None:
        for name, dtype in (
            ("real", torch.bool),
            ("sequence", torch.int64),
            ("position", torch.int64),
            ("is_prefill", torch.bool),
        ):
            value: Tensor = getattr(self, name)
            if value.dim() != 1 or value.shape != self.real.shape or value.dtype != dtype:
                raise InputError(
                    f"rows.{name} is {value.dtype} {list(value.shape)}",
                    "the rows cannot be told apart",
                    f"give {dtype} [{self.real.numel()}], one value per row",
                )

    @classmethod
    def decode(cls, tokens: int, *, device: torch.device | str | None = None) -> Rows:
        """Return `tokens` real rows at one decode step, each of its own sequence."""
        return cls(
            real=torch.ones(tokens, dtype=torch.bool, device=device),
            sequence=torch.arange(tokens, device=device),
            position=torch.zeros(tokens, dtype=torch.int64, device=device),
            is_prefill=torch.zeros(tokens, dtype=torch.bool, device=device),
            distinct=True,
        )

    def lone_decode(self) -> Tensor:
        """[T] bool: real decode rows that are the only real row of their sequence in the batch.

        Only these may be routed by what else is in the batch. A row whose sequence has another
        row here (a prompt, speculated tokens) would otherwise see its own future.
        """
        if self.distinct:
            return self.real & ~self.is_prefill
        # Runs of one sequence, counted without a shape that depends on data (as unique's would).
        order = torch.argsort(self.sequence, stable=True)
        ordered = self.sequence[order]
        starts = torch.ones_like(self.real)
        starts[1:] = ordered[1:] != ordered[:-1]
        run = starts.cumsum(0) - 1
        companions = torch.zeros_like(run).scatter_add_(0, run, self.real[order].to(run.dtype))
        alone = torch.empty_like(self.real).scatter_(0, order, companions[run] == 1)
        return self.real & ~self.is_prefill & alone


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemState:
    """What the machine is doing, as values; None where nobody looked.

    Raises:
        InputError: there is no such stage.
    """

    temperature_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    stage: Stage = "cool"

    def __post_init__(self) -> None:
        if self.stage not in get_args(Stage):
            raise InputError(
                f"stage {self.stage!r} is unknown",
                "no policy can follow it",
                f"use {', '.join(get_args(Stage))}",
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selection:
    """A choice of experts, and the scores it was made from.

    Attributes:
        scores: [T, E] float32, what weights are made of.
        ranking: [T, E] float32, what experts are chosen by; -inf where the gate forbids one.
        indices: [T, k] int64.
        weights: [T, k] float32.
        used: [T, k] bool, False for slots that hold no expert (their weight is 0).
        gate_mass_lost: [T] float64, the share of its own top-k scores a row gave up. Experts it
            received instead do not count as a gain.
        counts: [E] int64, used slots per expert in real rows, where whoever chose knows them. The
            slots that are not used then point at an expert that is.
    """

    scores: Tensor
    ranking: Tensor
    indices: Tensor
    weights: Tensor
    used: Tensor
    gate_mass_lost: Tensor
    counts: Tensor | None = None


def undescribed(tokens: int, device: torch.device) -> Rows:
    """Return what `route` takes for `rows` it is not told of: those of one decode step.

    On a CPU made once a size and shared, so never written into. A trace of `torch.compile` makes
    its own, and so does each call on a GPU, where a captured graph would outlive a cache's entry.
    """
    shared = device.type == "cpu" and not torch.compiler.is_compiling()
    return (_undescribed if shared else _new_undescribed)(tokens, device)


def _new_undescribed(tokens: int, device: torch.device) -> Rows:
    return dataclasses.replace(Rows.decode(tokens, device=device), decode_only=True)


@functools.lru_cache(maxsize=64)
def _undescribed(tokens: int, device: torch.device) -> Rows:
    with torch.inference_mode(False):
        return _new_undescribed(tokens, device)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Assignment:
    """Who computes what, and what that is predicted to cost.

    Attributes:
        indices: [T, k] int64. A slot that is not `used` points at an expert that is active anyway
            (at expert 0 where no row is real), so that a kernel which ignores `used` loads no
            weights for it.
        weights: [T, k] float32, 0 in slots that are not used.
        used: [T, k] bool. False in padding rows, and where fewer than k experts were left.
        counts: [E] int64, used slots per expert.
        gate_mass_lost: [T] float64, see `Selection`; 0 in padding rows.
        history: What the policy wants to be given with the next batch.
        table: The prices behind `predicted`.
    """

    indices: Tensor
    weights: Tensor
    used: Tensor
    counts: Tensor
    gate_mass_lost: Tensor
    history: Any
    table: CostTable = field(repr=False)

    @property
    def predicted(self) -> LayerCost:
        """Latency and active energy of the layer by the table; priced when asked for."""
        return self.table.layer_cost(self.counts)


class Policy(Protocol):
    """Decides which experts a batch uses. Each is a frozen dataclass in `routing.policies`."""

    @property
    def neutral(self) -> bool:
        """Whether these parameters leave plain top-k as it is, bit for bit."""
        ...

    def choose(
        self,
        plain: Selection,
        *,
        table: CostTable,
        state: SystemState,
        rows: Rows,
        gate: Gate,
        history: Any,
    ) -> tuple[Selection, Any]:
        """Return the choice made instead of `plain`, and the new history.

        Only asked where the policy is not neutral. It may give an expert only to real rows, and
        sets `used` to False in the slots it leaves empty.
        """
        ...
