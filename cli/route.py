"""`costprof route`: plain top-k against a policy, priced by a table and really run."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from costprof.cli.console import print_json
from costprof.core.errors import InputError


def route(
    table: Annotated[
        Path | None,
        typer.Argument(help="Cost table (Parquet); by default the shipped predictions."),
    ] = None,
    moe: Annotated[str | None, typer.Option(help="Which MoE of the table.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of a batch, one decode step each.")] = 16,
    batches: Annotated[int, typer.Option(help="Batches.")] = 8,
    repeats: Annotated[int, typer.Option(help="Timed passes over all batches.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of weights, router and batches.")] = 0,
    policy: Annotated[
        str, typer.Option(help="topk, fewer, skip, oea, budget, marginal …; see docs/routing.md.")
    ] = "marginal",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A parameter of the policy, as name=value; repeatable."),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Recorded router logits (.safetensors or .npz) instead of made-up ones."),
    ] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            "--gate", help="How the layer's gate is, as score=sigmoid, n_group=8 …; repeatable."
        ),
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="latency, energy, memory …, as --set objective=.")
    ] = None,
    lam: Annotated[float | None, typer.Option(help="As --set lam=.")] = None,
    budget: Annotated[float | None, typer.Option(help="As --set budget=.")] = None,
    q: Annotated[float | None, typer.Option(help="As --set q=.")] = None,
    skew: Annotated[float, typer.Option(help="Zipf exponent of expert popularity.")] = 0.5,
    adapt: Annotated[bool, typer.Option(help="Show test-time adaptation as well.")] = True,
    measure: Annotated[bool, typer.Option(help="Run the layer and time it.")] = True,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; by default those of the table.")
    ] = None,
    allow_device_mismatch: Annotated[
        bool, typer.Option("--allow-device-mismatch", help="Use a table of another device.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Compare plain top-k with a policy on made-up batches or a trace: predicted, measured here."""
    for name, value in (
        ("tokens", tokens),
        ("batches", batches),
        ("repeats", repeats),
        ("threads", threads),
    ):
        if value is not None and value < 1:
            raise InputError(
                f"--{name} is {value}", "nothing was routed", "give a whole number of at least 1"
            )
    cores = os.cpu_count() or 1
    if threads is not None and threads > cores:
        raise InputError(
            f"--threads is {threads}", "nothing was routed", f"this machine has {cores} cores"
        )
    if not 0 <= seed < 2**63:
        raise InputError(f"--seed is {seed}", "nothing was routed", "use 0 … 2^63 - 1")
    from costprof.cli.gates import read_gate
    from costprof.cli.policies import read_settings
    from costprof.cli.route_run import Settings, run_comparison

    short = {"objective": objective, "lam": lam, "budget": budget, "q": q}
    given = [f"{name}={value}" for name, value in short.items() if value is not None]
    parameters = read_settings(policy, [*given, *(settings or [])])
    chosen = Settings(
        table=table,
        moe=moe,
        tokens=tokens,
        batches=batches,
        repeats=repeats,
        seed=seed,
        policy=policy,
        parameters=parameters,
        trace=trace,
        gate=read_gate(gate or []),
        skew=skew,
        adapt=adapt,
        measure=measure,
        threads=threads,
        allow_device_mismatch=allow_device_mismatch,
    )
    result = run_comparison(chosen)
    if as_json:
        print_json(result)
    else:
        _print_table(result)


def _print_table(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result['moe']}: {result['tokens']} tokens, {result['batches']} batches")
    table.add_column("")
    for variant in result["variants"]:
        table.add_column(variant["name"].replace(" + ", "\n+ "), justify="right")
    for title, key, form in _lines(result):
        table.add_row(title, *(_cell(variant.get(key), form) for variant in result["variants"]))
    console = Console()
    if not console.is_terminal:  # a pipe has no width to fit
        console = Console(width=120)
    console.print(table)
    for note in result["notes"]:
        console.print(f"- {note}", soft_wrap=True, highlight=False)


def _lines(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Title, key and format of each line of the table."""
    source = ", ".join(result["energy_sources"])
    lines = [
        ("active experts", "active_experts", "{:.1f}"),
        ("their weights, MB", "weight_mb", "{:.1f}"),
        ("imbalance of rows (1: none)", "imbalance", "{:.2f}"),
        ("predicted latency µs", "predicted_latency_us", "{:.0f}"),
        (f"predicted energy mJ ({source})", "predicted_energy_mj", "{:.2f}"),
        ("gate mass lost", "gate_mass_lost", "{:.2%}"),
    ]
    if result["measured_device"] is not None:
        lines += [
            ("output difference", "output_difference", "{:.3f}"),
            ("measured layer µs\n(p25-p75)", "measured_layer_us", "{:.0f}"),
            ("measured routing µs, warm", "measured_routing_us", "{:.0f}"),
            ("measured layer / top-k's\n(p25-p75)", "measured_ratio", "{:.3f}"),
        ]
    if result["adaptation"] is not None:
        lines.append(("measured adapting µs, extra\n(p25-p75)", "measured_adapt_us", "{:.0f}"))
    return lines


def _cell(value: Any, form: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        low, mid, high = (form.format(value[key]) for key in ("p25", "median", "p75"))
        return f"{mid}\n({low}-{high})"
    return form.format(value) if math.isfinite(value) else "-"
