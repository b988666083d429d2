"""Test-time adaptation of a router: a logit offset moved by entropy and expected cost.

One vector [E] is added to the router's logits (as in Rewiring, arXiv 2510.14853, which moves such
vectors by next-token loss). Per batch it takes one step down

    mean entropy of the gate's probabilities + lam · expected layer cost / that at offset 0

after the batch was computed, so no output has seen an update made from itself (score before
update). Entropy alone rewards collapse (Tent, arXiv 2006.10726, observed on small batches by SAR,
arXiv 2302.12400), hence the guards of `AdaptConfig`. Without a state nothing is added: off is
neutral, bit for bit.

The expected cost is that of a smoothed top-k, see `costprof.routing.relaxation`. A selection bias
of the gate is not in it.

Functions here are pure; the caller measures their time and books it with `AdaptState.charge`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from costprof.core.errors import InputError, TableError
from costprof.costmodel.table import CostTable
from costprof.routing.contract import Gate, Rows
from costprof.routing.gate import gate_scores
from costprof.routing.relaxation import allowed_experts, expected_cost, inclusion

_ADAM_EPS = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptConfig:
    """How the offset moves. Entropies are given as shares of ln E, the largest possible.

    Args:
        lam: Weight of the expected cost, a share of its own value at offset 0.
        objective: Which cost.
        optimiser: Adam (Kingma & Ba, arXiv 1412.6980) or plain gradient descent.
        learning_rate: In logits.
        beta1, beta2: Adam's decay rates.
        max_norm: The offset is scaled back onto this Euclidean norm. A bound on how far routing
            can move from the trained router; EATA (arXiv 2204.02610) anchors with Fisher
            information instead, which needs data from before deployment.
        skip_entropy: Rows above it give no gradient: unreliable samples, as in EATA. EATA's 0.4
            is for classifiers; a router that spreads over k experts is less certain by design.
        floor_entropy: When the moving average of the batch entropy falls below it the offset is
            reset, as in SAR.
        ema: Decay of that average.

    Raises:
        InputError: a parameter outside its range.
    """

    lam: float = 1.0
    objective: Literal["latency", "energy"] = "latency"
    optimiser: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    max_norm: float = 1.0
    skip_entropy: float = 0.95
    floor_entropy: float = 0.1
    ema: float = 0.9

    def __post_init__(self) -> None:
        for name in ("lam", "learning_rate", "max_norm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0.0):
                raise _refused(name, value, "at least 0")
        for name in ("skip_entropy", "floor_entropy"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise _refused(name, getattr(self, name), "0 … 1")
        for name in ("beta1", "beta2", "ema"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise _refused(name, getattr(self, name), "at least 0 and below 1")
        if self.objective not in ("latency", "energy"):
            raise _refused("objective", self.objective, "latency or energy")
        if self.optimiser not in ("adam", "sgd"):
            raise _refused("optimiser", self.optimiser, "adam or sgd")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AdaptState:
    """What adaptation carries from batch to batch.

    Attributes:
        offset: [E] float32, for `MoELayer.run(logit_offset=...)`.
        first, second: [E], Adam's moments since the last reset.
        steps: Updates since the last reset.
        entropy_ema: Moving average of the batch entropy in nats, None before the first batch.
        updates, resets: Counts over the whole life.
        rows_skipped: Rows that gave no gradient because of their entropy.
        charged_us: Time booked for adapting.
    """

    offset: Tensor
    first: Tensor
    second: Tensor
    steps: int = 0
    entropy_ema: float | None = None
    updates: int = 0
    resets: int = 0
    rows_skipped: int = 0
    charged_us: float = 0.0

    @classmethod
    def start(cls, n_experts: int, device: torch.device | str | None = None) -> AdaptState:
        """Return the state before the first batch: offset 0."""
        zero = torch.zeros(n_experts, device=device)
        return cls(offset=zero, first=zero, second=zero)

    def charge(self, elapsed_us: float) -> AdaptState:
        """Return the state with `elapsed_us` of adaptation booked."""
        return dataclasses.replace(self, charged_us=self.charged_us + elapsed_us)


def adapt_step(
    logits: Tensor,
    state: AdaptState,
    *,
    config: AdaptConfig,
    table: CostTable,
    gate: Gate,
    rows: Rows | None = None,
) -> AdaptState:
    """Return the state after a batch whose outputs are already computed.

    Args:
        logits: [T, E] of the router, without the offset.
        state: As it was when the batch was computed.
        rows: What each row is; padding is ignored. None: all rows are real. A batch whose real
            logits are not all finite teaches nothing.

    Raises:
        InputError: the offset does not fit the logits.
        TableError: the table does not price the objective.
    """
    n_experts = logits.shape[-1]
    if state.offset.shape != (n_experts,):
        raise InputError(
            f"an offset of shape {list(state.offset.shape)} for {n_experts} experts",
            "the router cannot be adapted",
            "start a state for this layer",
        )
    real = logits if rows is None else logits[rows.real]
    if real.shape[0] == 0 or not bool(torch.isfinite(real).all()):
        return state
    # Serving runs in inference mode, whose tensors carry no gradient: copies of them do.
    with torch.inference_mode(False), torch.enable_grad():
        offset = state.offset.clone().requires_grad_()
        fixed = real.detach().clone().float()
        logits_now = fixed + offset
        allowed = allowed_experts(logits_now.detach(), gate)
        entropy = _entropy(logits_now, allowed, gate)  # [T]
        kept = entropy.detach() < config.skip_entropy * math.log(n_experts)
        loss = (entropy * kept).sum() / kept.sum().clamp_min(1)
        if config.lam > 0.0:
            # Rows that were skipped are part of the batch's cost, but do not pull.
            pulling = torch.where(kept.unsqueeze(-1), logits_now, logits_now.detach())
            cost = _cost(pulling, allowed, config, table, gate)
            plain = _cost(fixed, allowed_experts(fixed, gate), config, table, gate)
            loss = loss + config.lam * cost / _priced(plain, config)
        (gradient,) = torch.autograd.grad(loss, offset)
    skipped = int((~kept).sum())
    state = dataclasses.replace(state, rows_skipped=state.rows_skipped + skipped)
    state = _with_entropy(state, float(entropy.detach().mean()), config)
    floor = config.floor_entropy * math.log(n_experts)
    if state.entropy_ema is not None and state.entropy_ema < floor:
        return _reset(state)
    if skipped == len(kept):
        return state
    return _moved(state, gradient, config)


def _entropy(logits: Tensor, allowed: Tensor, gate: Gate) -> Tensor:
    """Entropy [T] in nats of the gate's scores as probabilities over the allowed experts."""
    scores = gate_scores(logits, gate).masked_fill(~allowed, 0.0)
    tiny = torch.finfo(scores.dtype).tiny
    probabilities = scores / scores.sum(dim=-1, keepdim=True).clamp_min(tiny)
    # The gradient of entropy is infinite at probability 0.
    probabilities = probabilities.clamp_min(tiny)
    return -(probabilities * probabilities.log()).sum(dim=-1)


def _cost(
    logits: Tensor, allowed: Tensor, config: AdaptConfig, table: CostTable, gate: Gate
) -> Tensor:
    price = expected_cost(inclusion(logits, allowed, gate.top_k), table)
    return price.latency_us if config.objective == "latency" else price.energy_mj


def _priced(cost: Tensor, config: AdaptConfig) -> float:
    value = float(cost)
    if not value > 0.0:
        raise TableError(
            f"the table prices this batch's {config.objective} at {value}",
            "the router cannot be adapted to it",
            "use another objective or a table that measured it",
        )
    return value


def _with_entropy(state: AdaptState, entropy: float, config: AdaptConfig) -> AdaptState:
    before = entropy if state.entropy_ema is None else state.entropy_ema
    return dataclasses.replace(
        state, entropy_ema=config.ema * before + (1.0 - config.ema) * entropy
    )


def _reset(state: AdaptState) -> AdaptState:
    zero = torch.zeros_like(state.offset)
    return dataclasses.replace(
        state,
        offset=zero,
        first=zero,
        second=zero,
        steps=0,
        entropy_ema=None,
        resets=state.resets + 1,
    )


def _moved(state: AdaptState, gradient: Tensor, config: AdaptConfig) -> AdaptState:
    steps = state.steps + 1
    first, second, step = state.first, state.second, gradient
    if config.optimiser == "adam":
        first = config.beta1 * first + (1.0 - config.beta1) * gradient
        second = config.beta2 * second + (1.0 - config.beta2) * gradient.square()
        unbiased = second / (1.0 - config.beta2**steps)
        step = first / (1.0 - config.beta1**steps) / (unbiased.sqrt() + _ADAM_EPS)
    offset = state.offset - config.learning_rate * step
    norm = float(offset.norm())
    if norm > config.max_norm:
        offset = offset * (config.max_norm / norm)
    return dataclasses.replace(
        state,
        offset=offset,
        first=first,
        second=second,
        steps=steps,
        updates=state.updates + 1,
    )


def _refused(name: str, value: object, allowed: str) -> InputError:
    return InputError(f"{name} is {value!r}", "nothing is adapted", f"use {allowed}")
