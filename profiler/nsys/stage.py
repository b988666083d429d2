"""Stage an export in DuckDB: strings, launches, ranges and the segments ranges own."""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path

import duckdb

from costprof.profiler.duck import quoted_file, quoted_name, quoted_text
from costprof.profiler.nsys.export import ExportInfo
from costprof.profiler.nsys.innermost import RANGE_COLUMNS, StackSweep
from costprof.profiler.nsys.schema import (
    COLUMNS,
    DOMAIN_CREATE,
    NVTX,
    PUSH_POP,
    RUNTIME,
    START_END,
    STRINGS,
    TEXT_COLUMNS,
    TID_BITS,
)

_BATCH = 10_000

_RANGE_TYPES = {
    "range_id": "BIGINT",
    "parent_id": "BIGINT",
    "depth": "BIGINT",
    "kind": "VARCHAR",
    "domain": "VARCHAR",
    "text": "VARCHAR",
    "global_tid": "BIGINT",
    "start_ns": "BIGINT",
    "end_ns": "BIGINT",
    "self_ns": "BIGINT",
    "path": "VARCHAR[]",
}
_SEGMENT_TYPES = {"global_tid": "BIGINT", "at_ns": "BIGINT", "range_id": "BIGINT"}


def source_rows(info: ExportInfo, schema: str, table: str) -> str:
    """Return SQL for `table` of the attached `schema` with the columns of `COLUMNS` and no others.

    What the export lacks is NULL; a table it lacks has no rows.
    """
    present = info.columns.get(table)
    parts = []
    for column in COLUMNS[table]:
        kind = "VARCHAR" if column in TEXT_COLUMNS else "BIGINT"
        name = quoted_name(column)
        value = name if present is not None and column in present else "NULL"
        parts.append(f"CAST({value} AS {kind}) AS {name}")
    selected = f"SELECT {', '.join(parts)}"
    if present is None:
        return f"({selected} WHERE false)"
    return f"({selected} FROM {quoted_name(schema)}.{quoted_name(table)})"


def stage(connection: duckdb.DuckDBPyConnection, info: ExportInfo, schema: str) -> None:
    """Make the tables `strings`, `launches`, `ranges` and `segments`.

    - `strings(id, value)`;
    - `launches(global_pid, correlation_id, start_ns, end_ns, global_tid, range_id)`: one row per
      CUDA API call. Some versions record a call twice, once for its versioned name: the two are
      merged, else every kernel would double. `range_id` is -1 where no range was open;
    - `ranges`, `segments`: see `innermost`. A range still open when the capture closed has no
      `end_ns`.
    """
    # The tables are read once or twice and thrown away; finding a compression costs more.
    connection.execute("PRAGMA force_compression = 'uncompressed'")
    connection.execute(
        # A repeated id must not multiply the rows joined to it.
        f"CREATE TABLE strings AS SELECT id, min(value) AS value "
        f"FROM {source_rows(info, schema, STRINGS)} WHERE id IS NOT NULL GROUP BY id"
    )
    _stage_ranges(connection, info, schema)
    # Segments are disjoint and name the gaps too, so the latest one before a call decides.
    connection.execute(
        f"""
        CREATE TABLE launches AS
        WITH calls AS (
            SELECT globalTid & ~{TID_BITS} AS global_pid, correlationId AS correlation_id,
                min(start) AS start_ns, max("end") AS end_ns, min(globalTid) AS global_tid
            FROM {source_rows(info, schema, RUNTIME)}
            WHERE correlationId IS NOT NULL AND globalTid IS NOT NULL
            GROUP BY ALL
        )
        SELECT calls.*, coalesce(segments.range_id, -1) AS range_id
        FROM calls ASOF LEFT JOIN segments
        ON calls.global_tid = segments.global_tid AND calls.start_ns >= segments.at_ns
        """
    )


def _stage_ranges(connection: duckdb.DuckDBPyConnection, info: ExportInfo, schema: str) -> None:
    events = source_rows(info, schema, NVTX)
    # A range that was open when the capture closed has no end. For attribution it lasts past every
    # other moment; how long it took is not known.
    moments = f"""
        SELECT max("end") AS at_ns FROM {events}
        UNION ALL SELECT max(start) FROM {events}
        UNION ALL SELECT max("end") FROM {source_rows(info, schema, RUNTIME)}
    """
    (last_ns,) = connection.execute(f"SELECT max(at_ns) FROM ({moments})").fetchone() or (None,)
    open_ns = 1 + int(last_ns or 0)
    connection.execute(
        f"""
        CREATE TABLE events AS
        SELECT event.globalTid AS global_tid, event.start AS start_ns,
            coalesce(event."end", {open_ns}) AS end_ns,
            event.eventType AS event_type, coalesce(event.domainId, 0) AS domain_id,
            coalesce(event.text, strings.value) AS text
        FROM {events} AS event LEFT JOIN strings ON strings.id = event.textId
        WHERE event.eventType IN ({PUSH_POP}, {START_END}, {DOMAIN_CREATE})
            AND event.globalTid IS NOT NULL
        """
    )
    # Rows go through files: Python holds one batch, and DuckDB reads them faster than it takes
    # Python values.
    with tempfile.TemporaryDirectory(prefix="costprof-stage-") as folder:
        segments, ranges = Path(folder) / "segments.csv", Path(folder) / "ranges.json"
        _write_sweep(connection, segments, ranges)
        connection.execute(
            f"CREATE TABLE segments AS FROM read_csv({quoted_file(segments)}, delim = ',', "
            f"header = false, auto_detect = false, columns = {_columns(_SEGMENT_TYPES)})"
        )
        connection.execute(
            f"CREATE TABLE ranges AS FROM read_json({quoted_file(ranges)}, "
            f"format = 'newline_delimited', columns = {_columns(_RANGE_TYPES)})"
        )
    connection.execute(f"UPDATE ranges SET end_ns = NULL, self_ns = NULL WHERE end_ns = {open_ns}")
    connection.execute("DROP TABLE events")


def _write_sweep(connection: duckdb.DuckDBPyConnection, segments: Path, ranges: Path) -> None:
    """Sweep the staged events; write segments as CSV and ranges as one JSON object a line."""
    connection.execute(
        f"""
        WITH domains AS (
            SELECT global_tid & ~{TID_BITS} AS global_pid, domain_id AS id, min(text) AS name
            FROM events WHERE event_type = {DOMAIN_CREATE} GROUP BY ALL
        )
        SELECT global_tid, start_ns, end_ns, event_type = {PUSH_POP}, domain_id,
            CASE WHEN domain_id = 0 THEN '' ELSE name END, text
        FROM events LEFT JOIN domains
        ON id = domain_id AND global_pid = global_tid & ~{TID_BITS}
        WHERE event_type <> {DOMAIN_CREATE} AND end_ns >= start_ns
        ORDER BY global_tid, start_ns, end_ns DESC, event_type, domain_id, text
        """
    )
    sweep = StackSweep()
    with (
        segments.open("w", encoding="utf-8", newline="") as segment_file,
        ranges.open("w", encoding="utf-8") as range_file,
    ):
        segment_rows = csv.writer(segment_file, lineterminator="\n")
        while True:
            batch = connection.fetchmany(_BATCH)
            if batch:
                sweep.add(batch)
            else:
                sweep.finish()
            segment_rows.writerows(sweep.segments)
            range_file.writelines(
                json.dumps(dict(zip(RANGE_COLUMNS, row, strict=True))) + "\n"
                for row in sweep.ranges
            )
            sweep.segments, sweep.ranges = [], []
            if not batch:
                return


def _columns(types: dict[str, str]) -> str:
    fields = (f"{quoted_name(name)}: {quoted_text(kind)}" for name, kind in types.items())
    return "{" + ", ".join(fields) + "}"
