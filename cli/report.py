"""`costprof report`: a dataset as one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from costprof.cli.console import print_json
from costprof.cli.outputs import check_dataset, check_out
from costprof.core.errors import InputError

if TYPE_CHECKING:
    from costprof.costmodel.report.figure import Report


def report(
    out: Annotated[Path, typer.Option(help="The page, an HTML file.")],
    dataset: Annotated[
        Path | None, typer.Argument(help="Folder that sweep or ingest wrote.")
    ] = None,
    frame: Annotated[
        Path | None,
        typer.Option(help="Instead of a dataset: the file that costprof evaluate --out wrote."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="What predictions do not see: token (the default), shape, sparse:F or fewshot:K."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the page.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the page's numbers as JSON, for scripts.")
    ] = False,
) -> None:
    """Write what a dataset shows and how well it is predicted as one page for a browser."""
    from costprof.core.files import write_text
    from costprof.costmodel.report.page import render_page

    made, source = _make(dataset, frame, split, out, force)
    page = render_page(made)
    write_text(out, page)
    if as_json:
        print_json({"out": str(out), **source, **made.to_dict()})
        return
    figures = sum(len(section.figures) for section in made.sections)
    print(f"{out}: {figures} figures, {len(page.encode()) / 1e6:.1f} MB; open it in a browser")


def _make(
    dataset: Path | None, frame: Path | None, split: str | None, out: Path, force: bool
) -> tuple[Report, dict[str, str]]:
    """Return the report of whichever source was given, and what to call the source."""
    consequence = "no report was made"
    if frame is not None:
        for name, other in (("a dataset", dataset), ("--split", split)):
            if other is not None:
                raise InputError(f"--frame with {name}", consequence, "a frame has both: leave it")
        check_out(out, force=force, consequence=consequence)
        return _of_frame(frame), {"frame": str(frame)}
    if dataset is None:
        raise InputError(
            "neither a dataset nor --frame was given",
            consequence,
            "name the folder, or the file that costprof evaluate --out wrote",
        )
    from costprof.costmodel.report.build import check_split

    split = "token" if split is None else split
    check_split(split)
    check_out(out, force=force, consequence=consequence)
    check_dataset(dataset, consequence)
    return _make_with_progress(dataset, split), {"split": split}


def _make_with_progress(dataset: Path, split: str) -> Report:
    from costprof.cli.stages import stages
    from costprof.costmodel.report.build import make_report

    with stages() as tell:
        return make_report(dataset, split, tell)


def _of_frame(path: Path) -> Report:
    from costprof.costmodel.report.from_frame import frame_report, read_frame

    return frame_report(read_frame(path), path.stem)
