"""`costprof table`: show, check and query a cost table."""

from __future__ import annotations

import dataclasses
import math
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from costprof.cli.console import print_json
from costprof.cli.table_calibrate import calibrate
from costprof.cli.table_diff import diff
from costprof.cli.table_export import export
from costprof.cli.table_merge import merge
from costprof.cli.table_predict import predict
from costprof.core.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

    from costprof.costmodel.manifest import Composition, Manifest

table = typer.Typer(
    name="table",
    help="Show, check, query, compare, merge, correct or export cost tables.",
    no_args_is_help=True,
)
table.command()(export)
table.command()(diff)
table.command()(merge)
table.command()(calibrate)
table.command()(predict)

TablePath = Annotated[Path, typer.Argument(help="The table, a Parquet file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


@table.command()
def show(path: TablePath, as_json: AsJson = False) -> None:
    """Print where a table comes from, what it prices and how well."""
    from costprof.costmodel.tablefile import read_table

    file = read_table(path)
    rows, manifest = file.rows, file.manifest
    if as_json:
        summary = manifest.to_dict()
        del summary["parameters"]
        print_json({**summary, "rows": rows.num_rows, "tiers": _counts(rows, "tier")})
        return
    _print_summary(rows, manifest)


@table.command()
def check(path: TablePath, as_json: AsJson = False) -> None:
    """Verify a table's content and whether it fits this machine; exit code 0 if so."""
    from costprof.core.device import detect_device, software_versions
    from costprof.costmodel.compatibility import check_device, drifts
    from costprof.costmodel.tablefile import read_table

    file = read_table(path)
    rows, manifest = file.rows, file.manifest
    present = detect_device("cpu" if manifest.device.kind == "cpu" else None)
    check_device(manifest.device, present)
    warnings = drifts(manifest, present, software_versions())
    current = file.stored_version == manifest.schema_version
    if as_json:
        print_json(
            {
                "rows": rows.num_rows,
                "content_hash": manifest.content_hash,
                "schema_version": file.stored_version,
                "device": manifest.device.name,
                "drifts": warnings,
            }
        )
        return
    print(f"content   ok, hash {manifest.content_hash[:12]}, {rows.num_rows} rows")
    forward = "" if current else f", brought forward to {manifest.schema_version}"
    print(f"schema    ok, version {file.stored_version}{forward}")
    print(f"device    ok, {manifest.device.name}")
    for warning in warnings:
        print(f"differs   {warning}: prices may be off")


@table.command()
def query(
    path: TablePath,
    expert: Annotated[int | None, typer.Option(help="Price this expert of the MoE.")] = None,
    tokens: Annotated[int | None, typer.Option(help="On so many tokens.")] = None,
    moe: Annotated[str | None, typer.Option(help="The MoE, where there are several.")] = None,
    sql: Annotated[str | None, typer.Option(help="SQL over the view t, run by DuckDB.")] = None,
    as_json: AsJson = False,
) -> None:
    """Price an expert, or run SQL over the table's rows; on any machine."""
    if (sql is None) == (expert is None and tokens is None):
        raise InputError(
            "either --sql or --expert with --tokens is needed",
            "nothing was asked",
            "for example: --expert 0 --tokens 16",
        )
    if sql is not None:
        _print_rows(_run_sql(path, sql), as_json)
        return
    if expert is None or tokens is None:
        raise InputError(
            f"--{'tokens' if tokens is None else 'expert'} is missing",
            "nothing was priced",
            "give both --expert and --tokens",
        )
    from costprof.costmodel.table import CostTable
    from costprof.costmodel.tablefile import read_table

    file = read_table(path)
    priced = CostTable(file.rows, file.manifest, moe=moe).cost(expert, tokens)
    cost = dataclasses.asdict(priced)
    if as_json:
        print_json(_plain(cost))
        return
    for name, value in cost.items():
        print(f"{name:16} {value:.6g}" if isinstance(value, float) else f"{name:16} {value}")


def _run_sql(path: Path, sql: str) -> list[dict[str, Any]]:
    import duckdb

    from costprof.costmodel.tablefile import read_table

    rows = read_table(path).rows
    with duckdb.connect(config={"enable_external_access": False}) as connection:
        connection.register("t", rows)
        try:
            # SQL without a statement gives no result at all, whatever the type stubs say.
            result = connection.execute(sql)
            names = [column[0] for column in result.description or ()] if result else []
            found = connection.fetchall() if names else []
        except duckdb.Error as error:
            raise InputError(
                f"DuckDB refuses the SQL ({str(error).splitlines()[0]})",
                "nothing was asked",
                "the table is the view t; its columns: costprof table query T --sql 'DESCRIBE t'",
            ) from error
    if not names:
        raise InputError(
            "the SQL selects nothing",
            "nothing was asked",
            "for example: --sql 'SELECT class_id, tokens, latency_us_p50 FROM t'",
        )
    return [dict(zip(_unique(names), values, strict=True)) for values in found]


def _unique(names: list[str]) -> list[str]:
    """Return `names` with a number added to repeated ones, as a row is keyed by them."""
    made: list[str] = []
    for name in names:
        number, free = 1, name
        while free in made or (number > 1 and free in names):
            number += 1
            free = f"{name}_{number}"
        made.append(free)
    return made


def _print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json([_plain(row) for row in rows])
        return
    from rich.console import Console
    from rich.table import Table

    if not rows:
        print("no rows")
        return
    shown = Table(box=None, header_style="bold")
    for name in rows[0]:
        shown.add_column(name, overflow="fold")
    for row in rows:
        shown.add_row(*(f"{v:.6g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(shown, markup=False)


def _print_summary(rows: pa.Table, manifest: Manifest) -> None:
    from rich.console import Console

    from costprof.cli.figures import print_figures

    console = Console(highlight=False)
    told = "for" if "transfer" in manifest.validation else "measured on"
    console.print(f"{told} {manifest.device.name}, torch {manifest.software.get('torch')}")
    for source in manifest.sources:
        console.print(
            f"from {source.name}: {source.rows_used} measurements, {source.rows_noisy} noisy, "
            f"{source.rows_failed} failed"
        )
    for moe in manifest.moes:
        classes = len(set(moe.class_of_expert))
        console.print(
            f"prices {moe.name}: {len(moe.class_of_expert)} experts of {classes} classes, "
            f"top {moe.top_k}"
        )
    tiers = ", ".join(f"{n} {tier}" for tier, n in _counts(rows, "tier").items())
    sources = ", ".join(f"{n} {name}" for name, n in _counts(rows, "energy_source").items())
    console.print(f"{rows.num_rows} rows: {tiers}; energy: {sources}")
    for class_id, parts in manifest.compositions.items():
        console.print(
            f"a layer of {class_id[:6]}: {parts.base_us:.1f} us + {parts.latency_scale:.3f} x the "
            f"sum of its experts ({_layers_behind(parts)})"
        )
    print_figures(console, manifest)


def _counts(rows: pa.Table, column: str) -> dict[str, int]:
    counted = rows[column].value_counts().to_pylist()
    return {str(each["values"]): int(each["counts"]) for each in counted}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return `values` as JSON can say them: NaN as None, decimals as numbers, dates as text."""
    return {name: _plain_value(value) for name, value in values.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, int | str | dict | list) else str(value)


def _layers_behind(parts: Composition) -> str:
    predicted = parts.fitted and not parts.layers
    return "layers predicted" if predicted else f"{parts.layers} layers measured"
