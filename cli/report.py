"""`costprof report`: a dataset as one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from costprof.cli.console import print_json
from costprof.cli.outputs import check_dataset, check_out

if TYPE_CHECKING:
    from costprof.costmodel.report.figure import Report


def report(
    dataset: Annotated[Path, typer.Argument(help="Folder that sweep or ingest wrote.")],
    out: Annotated[Path, typer.Option(help="The page, an HTML file.")],
    split: Annotated[
        str, typer.Option(help="What predictions do not see: token, shape, sparse:F or fewshot:K.")
    ] = "token",
    force: Annotated[bool, typer.Option("--force", help="Overwrite the page.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the page's numbers as JSON, for scripts.")
    ] = False,
) -> None:
    """Write what a dataset shows and how well it is predicted as one page for a browser."""
    from costprof.core.files import writable_folder, write_text
    from costprof.costmodel.report.build import check_split
    from costprof.costmodel.report.page import render_page

    check_split(split)
    check_out(out, force=force, consequence="no report was made")
    check_dataset(dataset, "no report was made")
    if out.parent.exists():
        writable_folder(out.parent)
    made = _make_with_progress(dataset, split)
    page = render_page(made)
    writable_folder(out.parent)
    write_text(out, page)
    if as_json:
        print_json({"out": str(out), "split": split, **made.to_dict()})
        return
    figures = sum(len(section.figures) for section in made.sections)
    print(f"{out}: {figures} figures, {len(page.encode()) / 1e6:.1f} MB; open it in a browser")


def _make_with_progress(dataset: Path, split: str) -> Report:
    from costprof.cli.stages import stages
    from costprof.costmodel.report.build import make_report

    with stages() as tell:
        return make_report(dataset, split, tell)
