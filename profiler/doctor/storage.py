"""DuckDB, and whether it reads a SQLite file without asking the network for anything."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from pathlib import Path

import duckdb

from costprof.core.errors import CostprofError
from costprof.profiler.doctor.check import Check, from_error
from costprof.profiler.duck import attach_sqlite, connect, load_sqlite_extension

DUCKDB = "DuckDB reads SQLite"
_VALUES = (3, 5, 7)


def duckdb_check() -> Check:
    """Write a SQLite file and sum a column of it through the packaged extension."""
    try:
        with tempfile.TemporaryDirectory(prefix="costprof-") as folder:
            path = Path(folder) / "probe.sqlite"
            with contextlib.closing(sqlite3.connect(path)) as source:
                source.execute("CREATE TABLE numbers (value INTEGER)")
                source.executemany("INSERT INTO numbers VALUES (?)", [(n,) for n in _VALUES])
                source.commit()
            with connect() as connection:
                load_sqlite_extension(connection)
                attach_sqlite(connection, path, "probe")
                row = connection.execute("SELECT sum(value) FROM probe.numbers").fetchone()
    except CostprofError as error:
        return from_error(DUCKDB, error)
    except (duckdb.Error, sqlite3.Error, OSError) as error:
        return Check(
            DUCKDB,
            "missing",
            f"{type(error).__name__}: {str(error).splitlines()[0]}",
            "exports of nsys cannot be ingested",
            "check that TMPDIR can be written, then reinstall duckdb and its extension",
        )
    if row != (sum(_VALUES),):
        return Check(
            DUCKDB,
            "missing",
            f"it read {row} where {sum(_VALUES)} was written",
            "exports of nsys would be misread",
            "reinstall duckdb and duckdb-extension-sqlite-scanner",
        )
    return Check(DUCKDB, "ok", f"DuckDB {duckdb.__version__} with the packaged extension, offline")
