"""DuckDB with bounded memory, offline, and able to read SQLite.

Left to itself DuckDB fetches its `sqlite` extension from the network at first use, which a GPU node
often does not have. The extension comes as a wheel instead, and is loaded by its path.

A bound parameter makes the Python client import pandas, half a second and 60 MB. Where neither is
to be spared, file names go through `quoted_text` instead.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import duckdb

from costprof.core.errors import ToolError

MEMORY_LIMIT_MB = 256
"""What DuckDB may hold before it spills: with Python and the buffers it does not count, ingest
stays under 600 MB. Two million launches still join in memory; with four million the join spills,
which costs several times the CPU but no more memory."""

THREADS = 2

_EXTENSION = "sqlite_scanner.duckdb_extension"
_NETWORK = {"autoinstall_known_extensions": False, "autoload_known_extensions": False}


@contextlib.contextmanager
def connect(
    *, memory_limit_mb: int = MEMORY_LIMIT_MB, threads: int = THREADS
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a connection whose tables and spills lie in a temporary folder, removed afterwards.

    The folder is made in TMPDIR. Row order is not kept, and nothing is fetched from the network.
    """
    with tempfile.TemporaryDirectory(prefix="costprof-duckdb-") as folder:
        connection = duckdb.connect(
            str(Path(folder) / "staging.duckdb"),
            config={
                **_NETWORK,
                "memory_limit": f"{memory_limit_mb}MB",
                "threads": threads,
                "temp_directory": str(Path(folder) / "spill"),
                "preserve_insertion_order": False,
            },
        )
        try:
            yield connection
        finally:
            connection.close()


def load_sqlite_extension(connection: duckdb.DuckDBPyConnection) -> None:
    """Load the packaged SQLite reader into `connection`.

    Raises:
        ToolError: it is not installed, or was built for another DuckDB.
    """
    path = sqlite_extension_path()
    try:
        connection.execute(f"LOAD {quoted_text(str(path))}")
    except duckdb.Error as error:
        raise ToolError(
            f"{path.name} does not load into DuckDB {duckdb.__version__} "
            f"({str(error).splitlines()[0]})",
            "SQLite exports cannot be read",
            _way_out(),
        ) from error


def sqlite_extension_path() -> Path:
    """Return the file of the packaged extension that fits the installed DuckDB.

    Raises:
        ToolError: there is none.
    """
    try:
        import duckdb_extension_sqlite_scanner as package
    except ImportError as error:
        raise ToolError(
            "the package duckdb-extension-sqlite-scanner is not installed",
            "SQLite exports cannot be read",
            _way_out(),
        ) from error
    folder = Path(str(package.__file__)).parent / "extensions"
    path = folder / f"v{duckdb.__version__}" / _EXTENSION
    if not path.is_file():
        found = ", ".join(sorted(entry.name for entry in folder.glob("v*"))) or "none"
        raise ToolError(
            f"the packaged SQLite extension is for DuckDB {found}, installed is "
            f"v{duckdb.__version__}",
            "SQLite exports cannot be read",
            _way_out(),
        )
    return path


def attach_sqlite(connection: duckdb.DuckDBPyConnection, path: Path, name: str) -> None:
    """Attach the SQLite file `path` read-only under the schema name `name`."""
    file = quoted_text(str(path.absolute()))
    connection.execute(f"ATTACH {file} AS {quoted_name(name)} (TYPE sqlite, READ_ONLY)")


def quoted_text(text: str) -> str:
    """Return `text` as an SQL string, for the places where DuckDB takes no parameter.

    >>> quoted_text("it's")
    "'it''s'"
    """
    return "'" + text.replace("'", "''") + "'"


def quoted_file(path: Path) -> str:
    """Return `path` as an SQL string for a reading function, its wildcards escaped."""
    return quoted_text(literal_file(path))


def literal_file(path: Path) -> str:
    """Return `path` with what DuckDB would expand in it escaped.

    >>> literal_file(Path("run[1]/a.parquet"))
    'run[[]1]/a.parquet'
    """
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(path))


def quoted_name(name: str) -> str:
    """Return `name` as an SQL identifier.

    >>> quoted_name('end')
    '"end"'
    """
    return '"' + name.replace('"', '""') + '"'


def _way_out() -> str:
    return f"pip install duckdb-extension-sqlite-scanner=={duckdb.__version__}"
