"""The `costprof` command: one verb a file, errors turned into one line and an exit code."""

from __future__ import annotations

import logging
import sys

import typer

from costprof.cli.console import error_line
from costprof.cli.doctor import doctor
from costprof.cli.fit import fit
from costprof.cli.ingest import ingest
from costprof.cli.inspect import inspect
from costprof.cli.route import route
from costprof.cli.sweep import sweep
from costprof.cli.table import table
from costprof.core.errors import CostprofError

app = typer.Typer(
    name="costprof",
    help="Measure what Mixture-of-Experts kernels cost on this machine, and route tokens by it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

app.command()(doctor)
app.command()(sweep)
app.command()(ingest)
app.command()(inspect)
app.command()(fit)
app.add_typer(table)
app.command()(route)


def main() -> None:
    """Run the command line. Exit codes: see `costprof.core.errors`; 130 after Ctrl-C."""
    logging.basicConfig(level=logging.WARNING, format="costprof: %(message)s")
    try:
        app()
    except CostprofError as error:
        error_line(str(error))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
