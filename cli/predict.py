"""`costprof predict`: the prices of MoE layers that nobody need have measured."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from costprof.cli.console import print_json
from costprof.cli.outputs import check_out
from costprof.core.errors import InputError


def predict(
    model: Annotated[Path, typer.Option(help="The table that `costprof fit` wrote.")],
    points: Annotated[
        Path, typer.Option(help="Layers to price: Parquet, columns as public measurements have.")
    ],
    out: Annotated[Path, typer.Option(help="The same rows with their prices, a Parquet file.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Price whole MoE layers: time, energy and power with 90 % intervals, and how each is known.

    Rows and columns stay as they are; latency_ms, energy_mj (power x latency) and their p05 and
    p95, power_w and tier are added.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from costprof.core.files import replacing
    from costprof.costmodel.grouped.price_table import model_of, price_by_table
    from costprof.costmodel.grouped.public import (
        doubts,
        public_points,
        rows_of_others,
        with_prices,
    )
    from costprof.costmodel.tablefile import read_table

    check_out(out, force=force, consequence="nothing was priced")
    file = read_table(model)
    known = model_of(file)
    if not points.is_file():
        raise InputError(f"there is no file {points}", "nothing was priced", "name a Parquet file")
    try:
        table = pq.read_table(points)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{points} cannot be read as Parquet ({str(error).splitlines()[0]})",
            "nothing was priced",
            "give a Parquet file",
        ) from error
    began = time.monotonic()
    prices = price_by_table(public_points(table), known, file.rows)
    device = file.manifest.device.name
    prices.tier[rows_of_others(table, device)] = "predicted"
    priced = with_prices(table, prices)
    notes = doubts(table, device)
    with replacing(out) as temporary:
        pq.write_table(priced, temporary)
    tiers = dict(sorted(Counter(prices.tier.tolist()).items()))
    seconds = time.monotonic() - began
    if as_json:
        print_json(
            {
                "out": str(out),
                "rows": table.num_rows,
                "tiers": tiers,
                "seconds": seconds,
                "notes": notes,
            }
        )
        return
    counted = ", ".join(f"{number} {tier}" for tier, number in tiers.items())
    print(f"{out}: {table.num_rows} layers priced in {seconds:.1f} s ({counted})")
    for note in notes:
        print(f"- {note}")
