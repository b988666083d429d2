"""`costprof evaluate`: how well layers are predicted that were held out, beside the baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from costprof.cli.console import print_json
from costprof.cli.outputs import check_dataset, check_out
from costprof.core.errors import InputError


def evaluate(
    datasets: Annotated[
        list[Path],
        typer.Argument(
            help="Dataset with layers of a named routing; for device:FROM,TO also one a device."
        ),
    ],
    split: Annotated[
        str,
        typer.Option(help="token, shape, sparse:FRACTION, fewshot:POINTS or device:FROM,TO."),
    ] = "token",
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn at random.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Write every held-out layer to this Parquet file.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Hold layers out, fit the rest, and print the errors of the model and of the baselines."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from costprof.core.files import replacing
    from costprof.costmodel.evaluation.figures import figures_of

    if out is not None:
        check_out(out, force=force, consequence="nothing was evaluated")
    for dataset in datasets:
        check_dataset(dataset, "nothing was evaluated")
    frames = _frames_with_progress(datasets, split, seed)
    if out is not None:
        with replacing(out) as temporary:
            pq.write_table(pa.concat_tables(frames.values()), temporary)
    figures = {given: figures_of(frame) for given, frame in frames.items()}
    names = [str(dataset) for dataset in datasets]
    if as_json:
        asked = {"dataset": names[0] if len(names) == 1 else names, "split": split, "seed": seed}
        if None in figures:
            print_json({**asked, **figures[None]})
        else:
            print_json({**asked, "given": {str(given): each for given, each in figures.items()}})
        return
    for given, each in figures.items():
        _print(split if given is None else f"{split}, {_given(given)}", each)


def _given(number: int) -> str:
    return f"{number} chosen layers of the target given" if number else "none of the target given"


def _frames_with_progress(datasets: list[Path], split: str, seed: int) -> dict[int | None, Any]:
    """Return the frame of held-out layers; of a split by device, one by the layers given."""
    from costprof.cli.stages import stages
    from costprof.costmodel.evaluation.device_split import is_device_split, transferred_layers
    from costprof.costmodel.evaluation.frame import held_out_layers

    by_device = is_device_split(split)
    if len(datasets) > 1 and not by_device:
        raise InputError(
            f"--split {split} with {len(datasets)} datasets",
            "nothing was evaluated",
            "give one dataset, or use --split device:FROM,TO",
        )
    with stages() as tell:
        if by_device:
            frames = transferred_layers(datasets, split, seed=seed, progress=tell)
            return dict(frames.items())
        return {None: held_out_layers(datasets[0], split, seed=seed, progress=tell)}


def _print(split: str, figures: dict[str, Any]) -> None:
    from rich.console import Console

    from costprof.cli.figures import print_errors

    console = Console(width=130)
    print_errors(console, figures, f"held out: {split}")
    choice = figures.get("least_energy_choice")
    if choice:
        console.print(
            f"of {choice['choices']} choices between kernels, shards and precisions the least "
            f"energy predicted was the least measured (or within 3 %) in "
            f"{choice['agreement']:.1f} %; on average it cost {choice['mean_extra_energy']:.2f} % "
            "more",
            highlight=False,
        )
