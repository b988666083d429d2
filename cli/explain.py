"""`costprof explain`: why one token went where it went, and what that saved."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from costprof.cli.console import print_json
from costprof.core.errors import InputError

if TYPE_CHECKING:
    from costprof.routing.explain import Explanation


def explain(
    table: Annotated[
        Path | None,
        typer.Argument(help="Cost table (Parquet); by default the shipped predictions."),
    ] = None,
    moe: Annotated[str | None, typer.Option(help="Which MoE of the table.")] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Recorded router logits (.safetensors or .npz); by default made-up."),
    ] = None,
    step: Annotated[int, typer.Option(help="Which batch of the trace, from 0.")] = 0,
    token: Annotated[int, typer.Option(help="Which row of the batch, from 0.")] = 0,
    policy: Annotated[
        str, typer.Option(help="topk, fewer, skip, oea, budget, marginal …; see docs/routing.md.")
    ] = "marginal",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A parameter of the policy, as name=value; repeatable."),
    ] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            "--gate", help="How the layer's gate is, as score=sigmoid, n_group=8 …; repeatable."
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of a made-up batch.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of made-up batches.")] = 0,
    skew: Annotated[float, typer.Option(help="Zipf exponent of expert popularity.")] = 0.5,
    allow_device_mismatch: Annotated[
        bool, typer.Option("--allow-device-mismatch", help="Use a table of another device.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Say for one token which experts its gate ranked, which it got, and what that saved."""
    for name, value, least in (("tokens", tokens, 1), ("step", step, 0)):
        if value < least:
            raise InputError(
                f"--{name} is {value}",
                "nothing was explained",
                f"give a whole number of at least {least}",
            )
    if not 0 <= seed < 2**63:
        raise InputError(f"--seed is {seed}", "nothing was explained", "use 0 … 2^63 - 1")
    import torch

    from costprof.cli.gates import described, layer_gate, read_gate
    from costprof.cli.policies import make_policy, parameters_of, read_settings
    from costprof.cli.route_batches import made_up, price_table, recorded
    from costprof.routing import Rows, route
    from costprof.routing.explain import explain as explain_row
    from costprof.runtime.synthetic import Workload

    parameters = read_settings(policy, settings or [])
    stated = read_gate(gate or [])
    prices = price_table(table, moe, allow_device_mismatch=allow_device_mismatch)
    if trace is not None:
        batches = recorded(trace, prices)
    else:
        batches = made_up(
            Workload(skew=skew),
            prices,
            tokens=tokens,
            batches=step + 1,
            generator=torch.Generator().manual_seed(seed),
            device=torch.device("cpu"),
        )
    if step >= len(batches.logits):
        raise InputError(
            f"step {step} of {len(batches.logits)}",
            "nothing was explained",
            f"use 0 … {len(batches.logits) - 1}",
        )
    chooses = layer_gate(prices, recorded=batches.gate, given=stated)
    rows = batches.rows or [Rows.decode(len(each)) for each in batches.logits]
    made = make_policy(
        policy, parameters, table=prices, gate=chooses, batches=batches.logits, rows=rows
    )
    history: Any = None
    for before in range(step):  # what the policy remembers of the batches before
        history = route(
            batches.logits[before],
            table=prices,
            gate=chooses,
            policy=made,
            rows=rows[before],
            history=history,
        ).history
    found = explain_row(
        batches.logits[step],
        token,
        table=prices,
        gate=chooses,
        policy=made,
        rows=rows[step],
        history=history,
    )
    if as_json:
        known = {
            "moe": prices.moe.name,
            "table_device": prices.manifest.device.name,
            "trace": None if trace is None else str(trace),
            "step": step,
            "gate": described(chooses),
            "policy": policy,
            "parameters": parameters_of(made),
        }
        print_json({**known, **dataclasses.asdict(found)})
    else:
        source = "a made-up batch" if trace is None else f"{trace}, step {step}"
        print(f"{prices.moe.name}, token {token} of {source} ({found.role}), policy {policy}")
        print(f"Prices: predicted by a table of {prices.manifest.device.name}; active energy.")
        _print_found(found)


def _print_found(found: Explanation) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for title in ("rank", "expert", "score", "share", "", "weight", "batch's tokens", "saved µs"):
        table.add_column(title, justify="left" if title == "" else "right")
    table.add_column("saved mJ", justify="right")
    for note in found.experts:
        table.add_row(
            str(note.rank),
            str(note.expert),
            f"{note.score:.4f}",
            "-" if note.share is None else f"{note.share:.1%}",
            note.fate,
            f"{note.weight_before:.4f} → {note.weight:.4f}",
            f"{note.tokens_before} → {note.tokens}",
            f"{note.saved_us:.2f}",
            f"{note.saved_mj:.3f}",
        )
    console = Console()
    if not console.is_terminal:  # a pipe has no width to fit
        console = Console(width=120)
    console.print(table)
    for reason in (found.criterion, *found.reasons):
        console.print(f"- {reason}", soft_wrap=True, highlight=False)
    console.print(
        f"The token gave up {found.gate_mass_lost:.1%} of its gate mass. The layer: "
        f"{found.active_before} → {found.active} active experts, "
        f"{found.latency_us_before:.1f} → {found.latency_us:.1f} µs, "
        f"{found.energy_mj_before:.2f} → {found.energy_mj:.2f} mJ.",
        soft_wrap=True,
        highlight=False,
    )
