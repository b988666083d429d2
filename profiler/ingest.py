"""Turn a profiler export into parts of a dataset: all of a file, or nothing."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb

from costprof.core.errors import InputError, ToolError
from costprof.core.files import replacing, writable_folder
from costprof.profiler.duck import (
    MEMORY_LIMIT_MB,
    attach_sqlite,
    connect,
    load_sqlite_extension,
    quoted_file,
    quoted_text,
)
from costprof.profiler.nsys.attribute import copy_kernels, copy_ranges
from costprof.profiler.nsys.export import check_export, damaged, export_report, require_content
from costprof.profiler.nsys.schema import COSTPROF_DOMAIN, KERNEL
from costprof.profiler.nsys.stage import source_rows, stage
from costprof.profiler.nsys.tool import require_nsys
from costprof.profiler.parts import (
    no_empty_folders,
    other_parts,
    part_name,
    refuse_other_parts,
)

SUFFIXES = (".sqlite", ".nsys-rep", ".csv", ".ncu-rep")

_SCHEMA = "export"


@dataclass(frozen=True, slots=True)
class IngestSummary:
    """What one file gave. `attributed + no_range + no_launch_row` is `kernels`.

    `no_range` counts kernels launched outside every range, `no_launch_row` those whose launch is
    not in the export, as in a capture window. `counters` is the number of rows of `counters/`.
    """

    source: str
    part: str
    kernels: int = 0
    attributed: int = 0
    no_range: int = 0
    no_launch_row: int = 0
    ranges: int = 0
    costprof_ranges: int = 0
    counters: int = 0
    tool_version: str = ""
    schema_version: str = ""


def ingest_file(path: Path, out_dir: Path, *, force: bool = False) -> IngestSummary:
    """Ingest one nsys or ncu file into the dataset `out_dir`; the same file again replaces itself.

    Args:
        path: `.sqlite` or `.nsys-rep` of nsys, `.csv` (raw page) or `.ncu-rep` of ncu.
        out_dir: Dataset folder; made if need be.
        force: Replace the parts of another file that had the same name.

    Raises:
        InputError: no such file, an unknown suffix, a folder that cannot be written, or the
            dataset holds another file of this name and `force` is off.
        ExportError: the file is damaged, of another kind, or holds nothing to measure.
        ToolError: nsys, ncu_report or DuckDB's SQLite reader is missing or fails.
    """
    if not path.is_file():
        raise InputError(f"{path} is not a file", "it was not ingested", "check the path")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(
            f"{path.name} has a suffix costprof does not know",
            "it was not ingested",
            f"give one of {', '.join(SUFFIXES)}",
        )
    source = path.name
    with no_empty_folders(out_dir):
        writable_folder(out_dir)
        part = part_name(source, path)
        if not force:
            refuse_other_parts(out_dir, source, part)
        if suffix == ".nsys-rep":
            with tempfile.TemporaryDirectory(prefix="costprof-export-") as folder:
                export = Path(folder) / "report.sqlite"
                export_report(path, export, require_nsys())
                summary = ingest_export(export, out_dir, part=part, source=source)
        elif suffix == ".sqlite":
            summary = ingest_export(path, out_dir, part=part, source=source)
        else:
            from costprof.profiler.ncu import ingest_counters

            rows = ingest_counters(path, out_dir, part=part, source=source)
            summary = IngestSummary(source, part, counters=rows)
        for stale in other_parts(out_dir, source, part):
            stale.unlink()
    return summary


def ingest_export(
    path: Path,
    out_dir: Path,
    *,
    part: str,
    source: str,
    memory_limit_mb: int = MEMORY_LIMIT_MB,
) -> IngestSummary:
    """Write the kernels and ranges of an nsys SQLite export as the part `part` of `out_dir`.

    Memory is bounded whatever the size of the export (see `duck.connect`). A part of that name is
    replaced; a kind of which the export has no rows gets no file.

    Args:
        path: The export.
        out_dir: Dataset folder.
        part: Name of the Parquet files, without suffix.
        source: What the column `source` says; keep paths out of it.
        memory_limit_mb: What DuckDB may hold before it spills to TMPDIR.

    Raises:
        InputError, ExportError: as `check_export` and `require_content`.
        ToolError: DuckDB's SQLite reader is missing, or memory or disk ran out.
    """
    info = check_export(path, name=source)
    require_content(info, name=source)
    kernels_part = out_dir / "kernels" / f"{part}.parquet"
    ranges_part = out_dir / "ranges" / f"{part}.parquet"
    with (
        no_empty_folders(out_dir),
        _duckdb_errors(source, memory_limit_mb),
        connect(memory_limit_mb=memory_limit_mb) as connection,
    ):
        load_sqlite_extension(connection)
        attach_sqlite(connection, path, _SCHEMA)
        stage(connection, info, _SCHEMA)
        any_kernels = _one(connection, f"SELECT 1 FROM {source_rows(info, _SCHEMA, KERNEL)}")
        any_ranges = _one(connection, "SELECT 1 FROM ranges")
        # Both files are complete before the first takes its name.
        with contextlib.ExitStack() as stack:
            if any_kernels:
                target = stack.enter_context(replacing(kernels_part))
                copy_kernels(connection, info, _SCHEMA, source, target)
            if any_ranges:
                copy_ranges(connection, source, stack.enter_context(replacing(ranges_part)))
        if not any_kernels:
            kernels_part.unlink(missing_ok=True)
        if not any_ranges:
            ranges_part.unlink(missing_ok=True)
        reasons: dict[str, int] = {}
        if any_kernels:
            reasons = dict(
                connection.execute(
                    "SELECT attribution, count(*) "
                    f"FROM read_parquet({quoted_file(kernels_part)}) GROUP BY ALL"
                ).fetchall()
            )
        own = f"domain = {quoted_text(COSTPROF_DOMAIN)}"
        ranges, costprof_ranges = connection.execute(
            f"SELECT count(*), count(*) FILTER ({own}) FROM ranges"
        ).fetchall()[0]
    return IngestSummary(
        source=source,
        part=part,
        kernels=sum(reasons.values()),
        attributed=reasons.get("attributed", 0),
        no_range=reasons.get("no_range", 0),
        no_launch_row=reasons.get("no_launch_row", 0),
        ranges=ranges,
        costprof_ranges=costprof_ranges,
        tool_version=info.product_version,
        schema_version=info.schema_version,
    )


def _one(connection: duckdb.DuckDBPyConnection, query: str) -> bool:
    return connection.execute(f"{query} LIMIT 1").fetchone() is not None


@contextlib.contextmanager
def _duckdb_errors(source: str, memory_limit_mb: int) -> Iterator[None]:
    """Turn what DuckDB raises into the two things it can mean: a full machine, a broken file."""
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise ToolError(
            f"DuckDB needs more than its {memory_limit_mb} MB or the disk for {source}",
            "nothing was ingested",
            "free some disk, or set TMPDIR to a folder on a larger one",
        ) from error
    except duckdb.Error as error:
        reason = str(error).splitlines()[0]
        if "No space left" in reason:
            raise ToolError(
                f"the disk is full ({reason})",
                "nothing was ingested",
                "free some disk, or set TMPDIR to a folder on a larger one",
            ) from error
        raise damaged(source, reason) from error
