"""Stage an export in DuckDB: strings, launches, ranges and the segments ranges own."""

from __future__ import annotations

import duckdb
import pyarrow as pa

from costprof.profiler.duck import quoted_name
from costprof.profiler.nsys.export import ExportInfo
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
from costprof.profiler.nsys.sweep import Columns, StackSweep

_BATCH = 10_000
_DRAIN_RANGES = 50_000

_SEGMENTS = pa.schema([("global_tid", pa.int64()), ("at_ns", pa.int64()), ("range_id", pa.int64())])
_RANGES = pa.schema(
    [
        ("range_id", pa.int64()),
        ("parent_id", pa.int64()),
        ("depth", pa.int64()),
        ("kind", pa.string()),
        ("domain", pa.string()),
        ("text", pa.string()),
        ("global_tid", pa.int64()),
        ("start_ns", pa.int64()),
        ("end_ns", pa.int64()),
        ("self_ns", pa.int64()),
        ("path", pa.list_(pa.string())),
    ]
)


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
    - `ranges`, `segments`: see `sweep`.
    """
    connection.execute(
        # A repeated id must not multiply the rows joined to it.
        f"CREATE TABLE strings AS SELECT id, min(value) AS value "
        f"FROM {source_rows(info, schema, STRINGS)} WHERE id IS NOT NULL GROUP BY id"
    )
    _stage_ranges(connection, info, schema)
    connection.execute(
        f"""
        CREATE TABLE calls AS
        SELECT globalTid & ~CAST($tid AS BIGINT) AS global_pid, correlationId AS correlation_id,
            min(start) AS start_ns, max("end") AS end_ns, min(globalTid) AS global_tid
        FROM {source_rows(info, schema, RUNTIME)}
        WHERE correlationId IS NOT NULL AND globalTid IS NOT NULL
        GROUP BY ALL
        """,
        {"tid": TID_BITS},
    )
    # Segments are disjoint and name the gaps too, so the latest one before a call decides.
    connection.execute(
        """
        CREATE TABLE launches AS
        SELECT calls.*, coalesce(segments.range_id, -1) AS range_id
        FROM calls ASOF LEFT JOIN segments
        ON calls.global_tid = segments.global_tid AND calls.start_ns >= segments.at_ns
        """
    )
    connection.execute("DROP TABLE calls")


def _stage_ranges(connection: duckdb.DuckDBPyConnection, info: ExportInfo, schema: str) -> None:
    for name, empty in (("segments", _SEGMENTS), ("ranges", _RANGES)):
        connection.register("fresh", empty.empty_table())
        connection.execute(f"CREATE TABLE {name} AS FROM fresh")
        connection.unregister("fresh")
    events = source_rows(info, schema, NVTX)
    connection.execute(
        f"""
        CREATE TABLE events AS
        SELECT event.globalTid AS global_tid, event.start AS start_ns, event."end" AS end_ns,
            event.eventType AS event_type, coalesce(event.domainId, 0) AS domain_id,
            coalesce(event.text, strings.value) AS text
        FROM {events} AS event LEFT JOIN strings ON strings.id = event.textId
        WHERE event.eventType IN ($push_pop, $start_end, $create) AND event.globalTid IS NOT NULL
        """,
        {"push_pop": PUSH_POP, "start_end": START_END, "create": DOMAIN_CREATE},
    )
    # Reading on one cursor while inserting on the other keeps the ranges out of Python's memory.
    with connection.cursor() as reader, connection.cursor() as writer:
        reader.execute(
            """
            WITH domains AS (
                SELECT global_tid & ~CAST($tid AS BIGINT) AS global_pid, domain_id AS id,
                    min(text) AS name
                FROM events WHERE event_type = $create GROUP BY ALL
            )
            SELECT global_tid, start_ns, end_ns, event_type = $push_pop, domain_id,
                CASE WHEN domain_id = 0 THEN '' ELSE name END, text
            FROM events LEFT JOIN domains
            ON id = domain_id AND global_pid = global_tid & ~CAST($tid AS BIGINT)
            WHERE event_type <> $create AND end_ns >= start_ns
            ORDER BY global_tid, start_ns, end_ns DESC, event_type, domain_id, text
            """,
            {"tid": TID_BITS, "create": DOMAIN_CREATE, "push_pop": PUSH_POP},
        )
        sweep = StackSweep()
        while batch := reader.fetchmany(_BATCH):
            sweep.add(batch)
            if len(sweep.columns.ranges["range_id"]) >= _DRAIN_RANGES:
                _drain(writer, sweep)
        sweep.finish()
        _drain(writer, sweep)
    connection.execute("DROP TABLE events")


def _drain(writer: duckdb.DuckDBPyConnection, sweep: StackSweep) -> None:
    columns, sweep.columns = sweep.columns, Columns()
    for name, rows, schema in (
        ("segments", columns.segments, _SEGMENTS),
        ("ranges", columns.ranges, _RANGES),
    ):
        writer.register("fresh", pa.table(rows, schema=schema))
        writer.execute(f"INSERT INTO {name} FROM fresh")
        writer.unregister("fresh")
