"""Make SQLite exports of nsys reports, and tell a usable export from a broken one."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from costprof.core.errors import ExportError, InputError
from costprof.profiler.nsys.diagnosis import read_diagnosis
from costprof.profiler.nsys.schema import (
    COSTPROF_DOMAIN,
    DOMAIN_CREATE,
    KERNEL,
    META_TABLES,
    NVTX,
    PUSH_POP,
    RUNTIME,
    START_END,
    STRINGS,
    TID_BITS,
    table_columns,
)
from costprof.profiler.nsys.tool import NsysTool
from costprof.profiler.process import run_tool

EXPORT_TIMEOUT_S = 600.0

_MAGIC = b"SQLite format 3\0"
_CONSEQUENCE = "nothing was ingested"
_REQUIRED = {KERNEL: {"start", "end"}, RUNTIME: {"start", "end"}, NVTX: {"start", "eventType"}}


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """What a checked export is. `columns` are those of the tables costprof reads."""

    path: Path
    product_version: str
    schema_version: str
    columns: dict[str, set[str]]


def export_report(
    report: Path,
    target: Path,
    tool: NsysTool,
    *,
    timeout_s: float = EXPORT_TIMEOUT_S,
    mark: str | None = None,
) -> None:
    """Export a `.nsys-rep` to the SQLite file `target`; on failure leave nothing.

    An nsys older than the report fails with an opaque message and leaves a broken file behind, so
    the export goes to a temporary name until its exit code and metadata have been seen. `mark`
    names its process, see `profiler.process.run_tool`.

    Raises:
        InputError: `report` cannot be read.
        ExportError: nsys fails, takes longer than `timeout_s` seconds, or writes no export.
    """
    _require_file(report)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as folder:
        partial = Path(folder) / "export.sqlite"
        # The output is a bare name in the working folder: nsys expands % in names.
        completed = run_tool(
            [
                tool.path,
                "export",
                "--type=sqlite",
                "--quiet=true",
                f"--output={partial.name}",
                report.absolute(),
            ],
            timeout_s=timeout_s,
            mark=mark,
            cwd=Path(folder),
        )
        if completed.timed_out:
            raise ExportError(
                f"nsys export of {report.name} did not end within {timeout_s:.0f} s",
                _CONSEQUENCE,
                "export it by hand with nsys export --type=sqlite and ingest the .sqlite",
            )
        if not completed.succeeded or not partial.is_file():
            raise ExportError(
                f"nsys {tool.version_text} cannot export {report.name} "
                f"(code {completed.returncode}: {completed.last_words or 'no message'})",
                _CONSEQUENCE,
                "the report may be newer than this nsys or damaged; export it with the nsys that "
                "made it: nsys export --type=sqlite",
            )
        check_export(partial, name=report.name)
        partial.replace(target)


def check_export(path: Path, *, name: str | None = None) -> ExportInfo:
    """Return what `path` is, if it is an intact nsys export.

    Args:
        path: The SQLite file.
        name: What to call it in messages, by default its path.

    Raises:
        InputError: there is no such file.
        ExportError: it is not SQLite, damaged, or not an nsys export.
    """
    _require_file(path)
    label = name or str(path)
    _check_header(path, label)
    with open_export(path, name=label) as connection:
        meta = _metadata(connection)
        if meta is None:
            raise ExportError(
                f"{label} is a SQLite file without nsys metadata",
                _CONSEQUENCE,
                "give a file made by nsys export --type=sqlite",
            )
        columns = table_columns(connection)
    for table, needed in _REQUIRED.items():
        missing = needed - columns.get(table, needed)
        if missing:
            raise ExportError(
                f"{label} has a table {table} without {', '.join(sorted(missing))}",
                _CONSEQUENCE,
                "its schema is unknown here; export the report again with another nsys",
            )
    return ExportInfo(
        path,
        meta.get("EXPORT_PRODUCT_VERSION", ""),
        meta.get("EXPORT_SCHEMA_VERSION", ""),
        columns,
    )


def require_content(info: ExportInfo, *, name: str | None = None) -> None:
    """Check that there is something to measure: kernels, or ranges of the `costprof` domain.

    Raises:
        ExportError: there is neither; carries what nsys noted as the reason.
    """
    label = name or str(info.path)
    with open_export(info.path, name=label) as connection:
        if _has_rows(connection, info, KERNEL) or _costprof_texts(connection, info, limit=1):
            return
        calls = _count(connection, info, RUNTIME)
        ranges = _count(connection, info, NVTX)
        diagnosis = read_diagnosis(connection)
    raise ExportError(
        f"{label} holds no kernels and no {COSTPROF_DOMAIN} ranges ({calls} CUDA calls, "
        f"{ranges} NVTX events); nsys noted: {diagnosis or 'nothing'}",
        _CONSEQUENCE,
        "profile again with --trace=cuda,nvtx and an nsys that knows the installed driver",
    )


def costprof_range_texts(path: Path) -> list[str]:
    """Return the texts of all ranges of the `costprof` domain in an export, in order of start.

    Raises:
        InputError, ExportError: as `check_export`.
    """
    info = check_export(path)
    with open_export(path) as connection:
        return _costprof_texts(connection, info, limit=-1)


@contextlib.contextmanager
def open_export(path: Path, *, name: str | None = None) -> Iterator[sqlite3.Connection]:
    """Yield a read-only connection; a fault SQLite meets while it is used becomes an ExportError.

    Raises:
        ExportError: the file is damaged.
    """
    try:
        uri = f"file:{urllib.parse.quote(str(path.absolute()))}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            yield connection
    except sqlite3.Error as error:
        raise damaged(name or str(path), str(error)) from error


def damaged(label: str, reason: str) -> ExportError:
    """Return the error for a SQLite file that cannot be read to its end."""
    return ExportError(
        f"{label} is damaged ({reason})", _CONSEQUENCE, "export the report again, or copy it anew"
    )


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(
            f"{path} is not a file", _CONSEQUENCE, "name a .sqlite, .nsys-rep, .csv or .ncu-rep"
        )


def _check_header(path: Path, label: str) -> None:
    """Refuse what is not SQLite, and a file shorter than its header says.

    Header fields: https://www.sqlite.org/fileformat.html#the_database_header
    """
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except OSError as error:
        raise InputError(
            f"{label} cannot be read ({error.strerror or error})", _CONSEQUENCE, "check permissions"
        ) from error
    if not header.startswith(_MAGIC):
        raise ExportError(
            f"{label} is not a SQLite file",
            _CONSEQUENCE,
            "give a file made by nsys export --type=sqlite",
        )
    if len(header) < 100:
        raise damaged(label, "shorter than a SQLite header")
    page_bytes = int.from_bytes(header[16:18], "big")
    page_bytes = 65536 if page_bytes == 1 else page_bytes
    pages = int.from_bytes(header[28:32], "big")
    # The page count is only kept up by writers that also set these two counters alike.
    if header[24:28] == header[92:96] and path.stat().st_size < page_bytes * pages:
        raise damaged(label, f"{path.stat().st_size} bytes of {page_bytes * pages}; it was cut off")


def _metadata(connection: sqlite3.Connection) -> dict[str, str] | None:
    for table in META_TABLES:
        columns = {
            name
            for (name,) in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))
        }
        if {"name", "value"} <= columns:
            rows = connection.execute(
                f"SELECT name, value FROM {table} "
                "WHERE name IN ('EXPORT_PRODUCT_VERSION', 'EXPORT_SCHEMA_VERSION')"
            )
            return {str(name): str(value) for name, value in rows}
    return None


def _has_rows(connection: sqlite3.Connection, info: ExportInfo, table: str) -> bool:
    if table not in info.columns:
        return False
    return connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is not None


def _count(connection: sqlite3.Connection, info: ExportInfo, table: str) -> int:
    if table not in info.columns:
        return 0
    return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def _costprof_texts(connection: sqlite3.Connection, info: ExportInfo, *, limit: int) -> list[str]:
    """Texts of finished `costprof` ranges; a `limit` of -1 is none."""
    present = info.columns.get(NVTX, set())
    if not {"end", "globalTid", "domainId"} <= present or not present & {"text", "textId"}:
        return []
    inline = "event.text" if "text" in present else "NULL"
    stored, join = "NULL", ""
    if "textId" in present and info.columns.get(STRINGS, set()) >= {"id", "value"}:
        stored, join = "string.value", f"LEFT JOIN {STRINGS} AS string ON string.id = event.textId"
    text = f"coalesce({inline}, {stored})"
    rows = connection.execute(
        f"""
        WITH domain AS (
            SELECT DISTINCT event.globalTid & ~:tid AS pid, event.domainId AS id
            FROM {NVTX} AS event {join} WHERE event.eventType = :create AND {text} = :costprof
        )
        SELECT {text} FROM {NVTX} AS event {join}
        JOIN domain ON domain.pid = event.globalTid & ~:tid AND domain.id = event.domainId
        WHERE event.eventType IN (:push_pop, :start_end) AND event.end IS NOT NULL
        ORDER BY event.start LIMIT :limit
        """,
        {
            "tid": TID_BITS,
            "create": DOMAIN_CREATE,
            "costprof": COSTPROF_DOMAIN,
            "push_pop": PUSH_POP,
            "start_end": START_END,
            "limit": limit,
        },
    )
    return [value for (value,) in rows if value is not None]
