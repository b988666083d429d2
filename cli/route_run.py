"""What `costprof route` computes: a layer of random weights, batches, variants, figures."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from costprof.cli.gates import described, in_words, layer_gate
from costprof.cli.memory import check_memory
from costprof.cli.policies import make_policy, parameters_of
from costprof.cli.route_batches import made_up, price_table, recorded
from costprof.core.device import DeviceFingerprint, detect_device
from costprof.costmodel.table import CostTable
from costprof.routing import Gate, TopK
from costprof.runtime import comparison
from costprof.runtime.adapt import AdaptConfig, AdaptState
from costprof.runtime.comparison import Decided, Measured, Variant
from costprof.runtime.moe import MoELayer
from costprof.runtime.synthetic import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The checked arguments of the verb."""

    table: Path | None
    moe: str | None
    tokens: int
    batches: int
    repeats: int
    seed: int
    policy: str
    parameters: dict[str, Any]
    trace: Path | None
    gate: dict[str, Any]
    skew: float
    adapt: bool
    measure: bool
    threads: int | None
    allow_device_mismatch: bool


def run_comparison(settings: Settings) -> dict[str, Any]:
    """Return all figures as plain JSON values.

    Raises:
        InputError: the layer does not fit into memory, or a parameter is out of range.
        TableError: the table cannot be loaded or lacks a price.
    """
    workload = Workload(skew=settings.skew)
    if settings.table is None:
        # Predictions of another device are no reason to run a layer here.
        settings = dataclasses.replace(settings, measure=False)
    if settings.trace is not None:
        # Logits alone: there is nothing to run, and no prompt to keep out of adaptation.
        settings = dataclasses.replace(settings, measure=False, adapt=False)
    table = price_table(
        settings.table, settings.moe, allow_device_mismatch=settings.allow_device_mismatch
    )
    threads = settings.threads or table.manifest.threads
    if threads is not None:
        torch.set_num_threads(min(threads, os.cpu_count() or 1))
    device = _device(table)
    generator = torch.Generator().manual_seed(settings.seed)
    if settings.trace is None:
        batches = made_up(
            workload,
            table,
            tokens=settings.tokens,
            batches=settings.batches,
            generator=generator,
            device=device,
        )
    else:
        batches = recorded(settings.trace, table)
    gate = layer_gate(table, recorded=batches.gate, given=settings.gate)
    logits = batches.logits
    policy = make_policy(
        settings.policy,
        settings.parameters,
        table=table,
        gate=gate,
        batches=logits,
        rows=batches.rows,
    )
    variants = [
        Variant(name="top-k", policy=TopK()),
        Variant(name=settings.policy, policy=policy),
    ]
    if settings.adapt:
        variants += [
            Variant(name=f"{variant.name} + adapted", policy=variant.policy, adapted=True)
            for variant in tuple(variants)
        ]
    with torch.inference_mode():
        offsets = [torch.zeros(table.n_experts, device=logits[0].device)] * len(logits)
        adapt_us: list[float] = []
        state: AdaptState | None = None
        if settings.adapt:
            config = AdaptConfig(objective=_adapted_to(settings))
            offsets, adapt_us, state = comparison.adapt_over(
                logits, config=config, table=table, gate=gate
            )
        decided = [
            comparison.decide(variant, logits, offsets, table=table, gate=gate, rows=batches.rows)
            for variant in variants
        ]
        rows = [
            _predicted(variant, each, adapt_us)
            for variant, each in zip(variants, decided, strict=True)
        ]
        present = detect_device("cpu" if device.type == "cpu" else None)
        if settings.measure and batches.router is not None and batches.hidden is not None:
            check_memory(
                "the layer's experts",
                int(table.expert_weight_bytes.sum()),
                device,
                way_out="use --no-measure to see the predictions alone",
            )
            layer = MoELayer.random(batches.router, gate=gate, table=table, generator=generator)
            histories = [each.histories for each in decided]
            _add_measured(
                rows, variants, layer, batches.hidden, offsets, histories, settings, present
            )
    return {
        "moe": table.moe.name,
        "experts": table.n_experts,
        "top_k": table.moe.top_k,
        "tokens": logits[0].shape[0],
        "batches": len(logits),
        "trace": None if settings.trace is None else str(settings.trace),
        "repeats": settings.repeats if settings.measure else 0,
        "seed": settings.seed,
        "policy": settings.policy,
        "parameters": parameters_of(policy),
        "table_device": table.manifest.device.name,
        "gate": described(gate),
        "threads": torch.get_num_threads(),
        "measured_device": present.name if settings.measure else None,
        "energy_sources": sorted(frozenset().union(*(each.energy_sources for each in decided))),
        "tiers": sorted(frozenset().union(*(each.tiers for each in decided))),
        "adaptation": _adaptation(state),
        "variants": rows,
        "notes": _notes(table, settings, gate, workload, present, state),
    }


def _predicted(variant: Variant, decided: Decided, adapt_us: list[float]) -> dict[str, Any]:
    return {
        "name": variant.name,
        "adapted": variant.adapted,
        "active_experts": fmean(decided.active_experts),
        "weight_mb": fmean(decided.weight_bytes) / 1e6,
        "imbalance": fmean(decided.imbalance),
        "predicted_latency_us": fmean(decided.latency_us),
        "predicted_energy_mj": fmean(decided.energy_mj),
        "gate_mass_lost": fmean(decided.gate_mass_lost),
        "measured_adapt_us": _spread(adapt_us) if variant.adapted else None,
    }


def _add_measured(
    rows: list[dict[str, Any]],
    variants: list[Variant],
    layer: MoELayer,
    batches: list[torch.Tensor],
    offsets: list[torch.Tensor],
    histories: list[list[Any]],
    settings: Settings,
    present: DeviceFingerprint,
) -> None:
    evict = comparison.evictor(present.cache_bytes, batches[0].device)
    with _progress(settings.repeats * len(batches)) as tick:
        measured = comparison.measure(
            variants,
            layer,
            batches,
            offsets,
            histories,
            repeats=settings.repeats,
            evict=evict,
            tick=tick,
        )
    for row, variant, each, given in zip(rows, variants, measured, histories, strict=True):
        differences = comparison.output_differences(variant, layer, batches, offsets, given)
        row["output_difference"] = fmean(differences)
        row["measured_layer_us"] = _spread(each.layer_us)
        row["measured_routing_us"] = _spread(each.routing_us)["median"]
        row["measured_ratio"] = _spread(_ratios(each, measured[0]))


def _ratios(measured: Measured, plain: Measured) -> list[float]:
    pairs = zip(measured.layer_us, plain.layer_us, strict=True)
    return [mine / other for mine, other in pairs]


def _spread(values: list[float]) -> dict[str, float]:
    low, mid, high = np.percentile(values, [25, 50, 75])
    return {"p25": float(low), "median": float(mid), "p75": float(high), "n": len(values)}


def _adaptation(state: AdaptState | None) -> dict[str, Any] | None:
    if state is None:
        return None
    return {
        "updates": state.updates,
        "resets": state.resets,
        "rows_skipped": state.rows_skipped,
        "offset_norm": float(state.offset.norm()),
        "charged_us": state.charged_us,
    }


def _notes(
    table: CostTable,
    settings: Settings,
    gate: Gate,
    workload: Workload,
    present: DeviceFingerprint,
    state: AdaptState | None,
) -> list[str]:
    notes = [
        f"Predicted: mean over batches, by a table of {table.manifest.device.name}; "
        "energy is active energy.",
    ]
    if settings.trace is None:
        notes.append(
            f"Router and batches are made up: popularity Zipf {workload.skew:g}, logits spread "
            f"{workload.spread:g}, {workload.topics} topics; weights are random, so the output "
            "difference says nothing about a model's quality. They are routed under a "
            f"{in_words(gate)}."
        )
    else:
        notes.append(
            f"Logits are those of {settings.trace}, replayed in order under a {in_words(gate)}; "
            "padding counts for nothing, and nothing was run or adapted."
        )
    if settings.policy == "static_optimal" and "kept" not in settings.parameters:
        notes.append("The static set was chosen for these very batches, known in advance.")
    if settings.table is None:
        notes.append(
            "No table was named: prices are the predictions that come with costprof, fitted to "
            "public measurements. Nothing was run; measure this machine for a table of its own."
        )
    if settings.measure:
        notes.append(
            f"Measured on {present.name} with {torch.get_num_threads()} CPU threads: medians of "
            "A B B A means, caches evicted before each call; a layer call includes its routing. "
            "It runs costprof.runtime's kernels: a table of other kernels prices those."
        )
    if state is not None:
        if settings.parameters.get("objective", {}).keys() - {_adapted_to(settings)}:
            notes.append(f"Adaptation follows {_adapted_to(settings)} alone.")
        notes.append(
            f"Adaptation: {state.updates} updates, {state.resets} resets, {state.rows_skipped} "
            "rows skipped. Its time is not in the layer's: add it where it runs on every batch."
        )
    return notes


def _adapted_to(settings: Settings) -> Literal["latency", "energy"]:
    """Return the one term that adaptation follows, whatever else the policy weighs."""
    weights = settings.parameters.get("objective", {})
    return "energy" if "energy" in weights and "latency" not in weights else "latency"


def _device(table: CostTable) -> torch.device:
    on_gpu = table.manifest.device.kind == "gpu" and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    progress = Progress(
        TextColumn("timing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with progress:
        task = progress.add_task("timing", total=total)
        yield lambda: progress.advance(task)
