"""The `costprof` command: one verb a file, errors turned into one line and an exit code."""

from __future__ import annotations

import logging
import sys

import typer

from costprof.cli.console import error_line
from costprof.cli.doctor import doctor
from costprof.cli.evaluate import evaluate
from costprof.cli.explain import explain
from costprof.cli.fit import fit
from costprof.cli.ingest import ingest
from costprof.cli.inspect import inspect
from costprof.cli.predict import predict
from costprof.cli.report import report
from costprof.cli.route import route
from costprof.cli.sweep import sweep
from costprof.cli.table import table
from costprof.core.errors import CostprofError

FILE_ERROR = 8

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
app.command()(predict)
app.command()(evaluate)
app.command()(report)
app.command()(route)
app.command()(explain)


def main() -> None:
    """Run the command line. Exit codes: see `costprof.core.errors`; 130 after Ctrl-C."""
    logging.basicConfig(level=logging.WARNING, format="costprof: %(message)s")
    try:
        app()
    except CostprofError as error:
        error_line(str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        # A full disk, a folder that vanished: not ours to foresee everywhere, but to say plainly.
        error_line(
            f"{error.filename or 'a file'}: {error.strerror or error}; the command stopped there "
            "and left nothing half-written; free space or fix permissions and run it again"
        )
        sys.exit(FILE_ERROR)


if __name__ == "__main__":
    main()
