"""The sweep file: what a user asks to have measured, as TOML.

Every key is checked; an unknown one is an error, so that a typing mistake cannot pass silently.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from costprof.core.errors import InputError
from costprof.core.expert import Activation, Block, CacheState, Dtype, ExpertClass, Op, Quantisation

TokenCount = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ExpertSpec(_Strict):
    """An expert class: see `costprof.core.expert.ExpertClass`."""

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

    def to_class(self) -> ExpertClass:
        """Return the checked class.

        Raises:
            InputError: sizes below one or fields that contradict each other.
        """
        return ExpertClass(**self.model_dump())


class MeasureSpec(_Strict):
    """Ops of one named expert at some token counts: their product is measured.

    Beside `configs`, `tiles` members of a kernel's tile space are measured, where it has one.
    """

    expert: str
    ops: list[Op] = ["expert"]
    tokens: list[TokenCount] = Field(min_length=1)
    cache: list[CacheState] = ["cold"]
    kernels: dict[Op, str] = {}
    configs: list[dict[str, int]] = [{}]
    tiles: int = Field(default=0, ge=0)


class LayerSpec(_Strict):
    """Whole grouped layers of one named expert.

    Token counts per expert come from `tokens` under `distributions`, and from `counts`, which
    states them vector by vector. `ep_size` and `tp_size` are labels: `experts` and the expert's
    sizes are already those of the shard.
    """

    expert: str
    experts: int = Field(ge=1)
    top_k: int = Field(ge=1)
    tokens: list[TokenCount] = []
    distributions: list[str] = ["balanced"]
    counts: list[list[Annotated[int, Field(ge=0)]]] = []
    cache: list[CacheState] = ["cold"]
    kernel: str | None = None
    configs: list[dict[str, int]] = [{}]
    tiles: int = Field(default=0, ge=0)
    ep_size: int = Field(default=1, ge=1)
    tp_size: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _counts_fit(self) -> LayerSpec:
        if not self.tokens and not self.counts:
            raise ValueError("there is neither 'tokens' nor 'counts'")
        for counts in self.counts:
            rows = sum(counts)
            if len(counts) != self.experts:
                raise ValueError(f"{len(counts)} counts are given for {self.experts} experts")
            if rows == 0:
                raise ValueError("all counts are 0")
            # A shard also gets rows of other ranks' tokens, so there it can be any number.
            if self.ep_size == 1 and rows % self.top_k:
                raise ValueError(f"the counts add up to {rows}, no multiple of top_k {self.top_k}")
            if self.ep_size == 1 and max(counts) > rows // self.top_k:
                raise ValueError(
                    f"an expert gets {max(counts)} rows of {rows // self.top_k} tokens, each of "
                    "which can choose it once"
                )
        return self


class ExpertRun(_Strict):
    """`count` experts of one class, in expert-id order."""

    expert: str
    count: int = Field(ge=1)


class MoeSpec(_Strict):
    """An MoE the cost table shall price: which expert id is of which class."""

    name: str = Field(min_length=1)
    top_k: int = Field(ge=1)
    experts: list[ExpertRun] = Field(min_length=1)


class TimingSpec(_Strict):
    """How long to measure, and when to believe it.

    `target_ms` is the measuring time of one pass of one scenario; a scenario is measured in
    `passes` passes with the others in between. A scenario whose robust CV, (p75-p25)/p50, or whose
    disagreement between passes is above its limit is measured again up to `remeasure` times and
    flagged `noisy` if that does not help.
    """

    target_ms: float = Field(default=250.0, gt=0)
    warmup: int = Field(default=3, ge=1)
    min_repetitions: int = Field(default=10, ge=3)
    max_repetitions: int = Field(default=800, ge=3)
    passes: int = Field(default=2, ge=2)
    max_robust_cv: float = Field(default=0.10, gt=0)
    max_pass_disagreement: float = Field(default=0.05, gt=0)
    remeasure: int = Field(default=2, ge=0)
    run_seconds: float = Field(default=30.0, gt=0)
    timeout_s: float = Field(default=300.0, gt=0)  # of one pass of one scenario
    threads: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> TimingSpec:
        if self.max_repetitions < self.min_repetitions:
            raise ValueError("max_repetitions is below min_repetitions")
        return self


class SweepSpec(_Strict):
    """A whole sweep."""

    name: str = Field(min_length=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    experts: dict[str, ExpertSpec] = Field(min_length=1)
    measure: list[MeasureSpec] = []
    layer: list[LayerSpec] = []
    moe: list[MoeSpec] = []
    timing: TimingSpec = TimingSpec()

    def without_samples(self) -> SweepSpec:
        """Return the sweep without tile configs drawn at random, for a search that chooses them."""
        return self.model_copy(
            update={
                "measure": [entry.model_copy(update={"tiles": 0}) for entry in self.measure],
                "layer": [entry.model_copy(update={"tiles": 0}) for entry in self.layer],
            }
        )

    @model_validator(mode="after")
    def _names_exist(self) -> SweepSpec:
        if not self.measure and not self.layer:
            raise ValueError("there is neither a 'measure' nor a 'layer' entry")
        used = [entry.expert for entry in self.measure]
        used += [entry.expert for entry in self.layer]
        used += [run.expert for moe in self.moe for run in moe.experts]
        for name in used:
            if name not in self.experts:
                raise ValueError(f"expert {name!r} is not among {', '.join(self.experts)}")
        for moe in self.moe:
            if moe.top_k > sum(run.count for run in moe.experts):
                raise ValueError(f"moe {moe.name!r} has fewer experts than its top_k")
        return self


def load_spec(path: Path) -> SweepSpec:
    """Read a sweep file.

    Raises:
        InputError: it cannot be read, is not TOML, or does not follow the format.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror})", "no sweep was planned", "check the path"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is not TOML ({error})", "no sweep was planned", "correct that line"
        ) from error
    return parse_spec(values, source=str(path))


def parse_spec(values: dict[str, Any], *, source: str) -> SweepSpec:
    """Check the values of a sweep file read from `source`.

    Raises:
        InputError: naming the first key at fault.
    """
    try:
        return SweepSpec.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(
            f"{source}: {place}: {message} (got {first['input']!r:.80})",
            "no sweep was planned",
            "see docs/sweep.md for the format",
        ) from error
