"""Policies side by side on the same batches: what they decide, and how long they really take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from costprof.costmodel.table import CostTable
from costprof.routing import Assignment, Gate, Rows, route
from costprof.routing.contract import Policy
from costprof.routing.gate import select
from costprof.runtime.adapt import AdaptConfig, AdaptState, adapt_step
from costprof.runtime.moe import MoELayer


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A policy, with or without the adapted router."""

    name: str
    policy: Policy
    adapted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decided:
    """What one variant decided on each batch; lists have one value per batch.

    Latency, energy and weight bytes are the table's. `weight_bytes` are those stored of the experts
    with a row, each read once; `imbalance` is E · Σ n² / (Σ n)² of their rows n, 1 where all have
    as many, 0 without any. `gate_mass_lost` is the mean over rows of the share of the
    *unadapted* router's top-k scores that was given up, also for adapted variants. `histories`
    holds what the policy was given with each batch: what it returned with the one before.
    """

    active_experts: list[int]
    weight_bytes: list[float]
    imbalance: list[float]
    latency_us: list[float]
    energy_mj: list[float]
    gate_mass_lost: list[float]
    histories: list[Any]
    energy_sources: frozenset[str]
    tiers: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Times of one variant, µs. `layer_us` holds one mean of two calls per batch and repeat.

    `layer_us` covers the whole call: router, routing, experts. `routing_us` is routing alone, on
    given logits, with warm caches.
    """

    layer_us: list[float]
    routing_us: list[float]


def adapt_over(
    logits: Sequence[Tensor], *, config: AdaptConfig, table: CostTable, gate: Gate
) -> tuple[list[Tensor], list[float], AdaptState]:
    """Adapt over batches of router logits [T, E] in turn.

    Returns:
        The offset each batch is routed with (from before its own update), the µs each update
        took, and the last state, to which they are charged.
    """
    state = AdaptState.start(table.n_experts, logits[0].device)
    adapt_step(logits[0], state, config=config, table=table, gate=gate)  # the first call is slow
    offsets, spent_us = [], []
    for batch in logits:
        offsets.append(state.offset)
        begin = _now_us(batch.device)
        state = adapt_step(batch, state, config=config, table=table, gate=gate)
        spent_us.append(_now_us(batch.device) - begin)
        state = state.charge(spent_us[-1])
    return offsets, spent_us, state


def decide(
    variant: Variant,
    logits: Sequence[Tensor],
    offsets: Sequence[Tensor],
    *,
    table: CostTable,
    gate: Gate,
    rows: Sequence[Rows] | None = None,
) -> Decided:
    """Route every batch of `logits` [T, E] by `variant`, in turn, and price it; nothing is run."""
    active, stored, imbalance, latency, energy, lost = [], [], [], [], [], []
    expert_bytes: list[float] = table.expert_weight_bytes.tolist()
    priced: set[tuple[int, int]] = set()
    histories: list[Any] = []
    history: Any = None
    known = [None] * len(logits) if rows is None else rows
    for batch, offset, described in zip(logits, offsets, known, strict=True):
        seen = batch + offset if variant.adapted else batch
        assignment = route(
            seen, table=table, gate=gate, policy=variant.policy, rows=described, history=history
        )
        histories.append(history)
        history = assignment.history
        counts: list[int] = assignment.counts.tolist()
        priced.update((e, count) for e, count in enumerate(counts) if count)
        active.append(sum(count > 0 for count in counts))
        stored.append(sum(size for size, count in zip(expert_bytes, counts, strict=True) if count))
        squares = sum(count * count for count in counts)
        imbalance.append(len(counts) * squares / max(sum(counts), 1) ** 2)
        latency.append(float(assignment.predicted.latency_us))
        energy.append(float(assignment.predicted.energy_mj))
        lost.append(_mass_lost(batch, assignment, gate, described))
    costs = [table.cost(e, count) for e, count in sorted(priced)]
    return Decided(
        active_experts=active,
        weight_bytes=stored,
        imbalance=imbalance,
        latency_us=latency,
        energy_mj=energy,
        gate_mass_lost=lost,
        histories=histories,
        energy_sources=frozenset(cost.energy_source for cost in costs),
        tiers=frozenset(cost.tier for cost in costs),
    )


def output_differences(
    variant: Variant,
    layer: MoELayer,
    batches: Sequence[Tensor],
    offsets: Sequence[Tensor],
    histories: Sequence[Any],
) -> list[float]:
    """Relative Euclidean distance of the layer's output from plain top-k's, per batch."""
    differences = []
    for x, offset, history in zip(batches, offsets, histories, strict=True):
        plain = layer.run(x, batch_invariant=True).hidden.float()
        other = _run(layer, variant, x, offset, history).float()
        differences.append(float((other - plain).norm() / plain.norm()))
    return differences


def measure(
    variants: Sequence[Variant],
    layer: MoELayer,
    batches: Sequence[Tensor],
    offsets: Sequence[Tensor],
    histories: Sequence[Sequence[Any]],
    *,
    repeats: int,
    evict: Callable[[], None],
    tick: Callable[[], None],
) -> list[Measured]:
    """Time each variant on each batch there and back (A B B A), which cancels a steady drift.

    The next batch begins with the next variant (B A A B), as going first may be a disadvantage.

    Args:
        histories: Of each variant, what its policy is given with each batch (`Decided`).
        repeats: Passes over all batches.
        evict: Called before every timed call; puts other data into the caches.
        tick: Called after every pass over one batch.

    Returns:
        One per variant, in their order.
    """
    found = [Measured(layer_us=[], routing_us=[]) for _ in variants]
    for variant, history in zip(variants, histories, strict=True):
        # The first call of a shape allocates and plans; policies do more once they have a history.
        _run(layer, variant, batches[0], offsets[0], history[-1])
    order = deque(range(len(variants)))
    for _ in range(repeats):
        for b, (x, offset) in enumerate(zip(batches, offsets, strict=True)):
            layer_us = [0.0] * len(variants)
            for i in (*order, *reversed(order)):
                evict()
                begin = _now_us(x.device)
                _run(layer, variants[i], x, offset, histories[i][b])
                layer_us[i] += (_now_us(x.device) - begin) / 2
            for i in order:
                found[i].layer_us.append(layer_us[i])
                found[i].routing_us.append(
                    _routing_us(layer, variants[i], x, offset, histories[i][b])
                )
            order.rotate(-1)
            tick()
    return found


def evictor(cache_bytes: int, device: torch.device) -> Callable[[], None]:
    """Return a function that reads a buffer twice the size of the cache (at least 64 MiB).

    Reads only: lines left dirty would be written back during, and charged to, the next call.
    """
    size = max(2 * cache_bytes, 64 * 2**20)
    buffer = torch.ones(size // 4, dtype=torch.int32, device=device)

    def evict() -> None:
        buffer.sum()

    return evict


def _run(layer: MoELayer, variant: Variant, x: Tensor, offset: Tensor, history: Any) -> Tensor:
    layer.policy = variant.policy
    shift = offset if variant.adapted else None
    return layer.run(x, logit_offset=shift, history=history).hidden


def _routing_us(
    layer: MoELayer, variant: Variant, x: Tensor, offset: Tensor, history: Any
) -> float:
    logits = torch.nn.functional.linear(x, layer.gate_weight.to(x.dtype))
    seen = logits + offset if variant.adapted else logits
    for _ in range(2):  # the first call finds the caches as the variant before left them
        begin = _now_us(x.device)
        route(seen, table=layer.table, gate=layer.gate, policy=variant.policy, history=history)
        elapsed_us = _now_us(x.device) - begin
    return elapsed_us


def _mass_lost(logits: Tensor, assignment: Assignment, gate: Gate, rows: Rows | None) -> float:
    """Mean over real rows; 0 without any."""
    plain = select(logits, gate)
    has = torch.zeros_like(plain.scores).scatter_add_(
        -1, assignment.indices, assignment.used.to(plain.scores.dtype)
    )
    own = plain.scores.gather(-1, plain.indices).double()
    kept = (own * (has.gather(-1, plain.indices) > 0)).sum(-1)
    lost = 1 - kept / own.sum(-1)
    if rows is not None:
        lost = lost[rows.real]
    return float(lost.mean()) if lost.numel() else 0.0


def _now_us(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter_ns() / 1000.0
