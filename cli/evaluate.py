"""`costprof evaluate`: how well layers are predicted that were held out, beside the baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from costprof.cli.console import print_json


def evaluate(
    dataset: Annotated[Path, typer.Argument(help="Dataset with layers of a named routing.")],
    split: Annotated[
        str, typer.Option(help="token, shape, sparse:FRACTION or fewshot:POINTS.")
    ] = "token",
    seed: Annotated[int, typer.Option(help="Of what is drawn at random.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Write every held-out layer to this Parquet file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Hold layers out, fit the rest, and print the errors of the model and of the baselines."""
    import pyarrow.parquet as pq

    from costprof.core.files import replacing, writable_folder
    from costprof.costmodel.evaluation.figures import figures_of

    if out is not None:
        writable_folder(out.parent)
    frame = _frame_with_progress(dataset, split, seed)
    if out is not None:
        with replacing(out) as temporary:
            pq.write_table(frame, temporary)
    figures = figures_of(frame)
    if as_json:
        print_json({"dataset": str(dataset), "split": split, "seed": seed, **figures})
        return
    _print(split, figures)


def _frame_with_progress(dataset: Path, split: str, seed: int) -> Any:
    from costprof.cli.stages import stages
    from costprof.costmodel.evaluation.frame import held_out_layers

    with stages() as tell:
        return held_out_layers(dataset, split, seed=seed, progress=tell)


def _print(split: str, figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", title=f"held out: {split}", title_justify="left")
    for name in ("quantity", "layers", "predicted by"):
        table.add_column(name)
    for name in ("n", "MAPE %", "median %", "p90 %", "90 % interval"):
        table.add_column(name, justify="right")
    for quantity in ("latency", "energy"):
        for subset, methods in figures.get(quantity, {}).items():
            labels = (quantity, subset)
            for method, errors in methods.items():
                covered = errors.get("coverage_90")
                table.add_row(
                    *labels,
                    method,
                    str(errors["layers"]),
                    *(f"{errors[each]:.1f}" for each in ("mape", "median", "p90")),
                    "" if covered is None else f"holds {covered:.1f} %",
                )
                labels = ("", "")
    console = Console(width=130)
    console.print(table)
    choice = figures.get("least_energy_choice")
    if choice:
        console.print(
            f"of {choice['choices']} choices between kernels, shards and precisions the least "
            f"energy predicted was the least measured (or within 3 %) in "
            f"{choice['agreement']:.1f} %; on average it cost {choice['mean_extra_energy']:.2f} % "
            "more",
            highlight=False,
        )
