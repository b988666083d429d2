"""`costprof route`: plain top-k against a policy, priced by a table and really run."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from costprof.cli.console import print_json
from costprof.core.errors import InputError

if TYPE_CHECKING:
    from costprof.cli.route_run import Settings
    from costprof.routing.contract import Policy


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
    policy: Annotated[str, typer.Option(help="marginal or topk.")] = "marginal",
    objective: Annotated[str, typer.Option(help="latency, energy or weighted.")] = "latency",
    lam: Annotated[float, typer.Option(help="Gate mass given for the layer's whole cost.")] = 0.5,
    budget: Annotated[float, typer.Option(help="Cost aimed at, as a share of top-k's.")] = 1.0,
    q: Annotated[float, typer.Option(help="Share of its gate mass every token keeps.")] = 0.7,
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
    """Compare plain top-k with a policy on made-up batches: predicted, and measured here."""
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
    from costprof.cli.route_run import Settings, run_comparison

    settings = Settings(
        table=table,
        moe=moe,
        tokens=tokens,
        batches=batches,
        repeats=repeats,
        seed=seed,
        policy=_policy(policy, objective=objective, lam=lam, budget=budget, q=q),
        policy_name=policy,
        objective="energy" if objective == "energy" else "latency",
        weighted=objective == "weighted",
        skew=skew,
        adapt=adapt,
        measure=measure,
        threads=threads,
        allow_device_mismatch=allow_device_mismatch,
    )
    result = run_comparison(settings)
    if as_json:
        print_json(result)
    else:
        _print_table(settings, result)


def _policy(name: str, **parameters: Any) -> Policy:
    from costprof.routing import Marginal, TopK

    if name not in ("marginal", "topk"):
        raise InputError(
            f"policy {name!r} is unknown", "nothing was routed", "use marginal or topk"
        )
    marginal = Marginal(**parameters)  # checked also where it is not used
    return marginal if name == "marginal" else TopK()


def _print_table(settings: Settings, result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result['moe']}: {settings.tokens} tokens, {settings.batches} batches")
    table.add_column("")
    for variant in result["variants"]:
        table.add_column(variant["name"].replace(" + ", "\n+ "), justify="right")
    for title, key, form in _lines(settings, result):
        table.add_row(title, *(_cell(variant.get(key), form) for variant in result["variants"]))
    console = Console()
    if not console.is_terminal:  # a pipe has no width to fit
        console = Console(width=120)
    console.print(table)
    for note in result["notes"]:
        console.print(f"- {note}", soft_wrap=True, highlight=False)


def _lines(settings: Settings, result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Title, key and format of each line of the table."""
    source = ", ".join(result["energy_sources"])
    lines = [
        ("active experts", "active_experts", "{:.1f}"),
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
    if settings.adapt:
        lines.append(("measured adapting µs, extra\n(p25-p75)", "measured_adapt_us", "{:.0f}"))
    return lines


def _cell(value: Any, form: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        low, mid, high = (form.format(value[key]) for key in ("p25", "median", "p75"))
        return f"{mid}\n({low}-{high})"
    return form.format(value) if math.isfinite(value) else "-"
