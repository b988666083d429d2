"""What costprof reads of an nsys export, which differs from version to version.

Tables are created only when they have rows, and columns come and go (export schemas 2.9 to 3.25
were seen). So nothing here assumes one: a missing table is empty, a missing column NULL. The lists
below are also all that is ever read, which keeps environment, host, user and paths out.
"""

from __future__ import annotations

import sqlite3

META_TABLES = ("META_DATA_EXPORT", "EXPORT_META_DATA")
"""The second name is that of schemas up to 3.1.7."""

KERNEL = "CUPTI_ACTIVITY_KIND_KERNEL"
RUNTIME = "CUPTI_ACTIVITY_KIND_RUNTIME"
NVTX = "NVTX_EVENTS"
STRINGS = "StringIds"
DIAGNOSTIC = "DIAGNOSTIC_EVENT"

COLUMNS: dict[str, tuple[str, ...]] = {
    KERNEL: (
        "start",
        "end",
        "deviceId",
        "contextId",
        "streamId",
        "correlationId",
        "globalPid",
        "demangledName",
        "shortName",
        "registersPerThread",
        "gridX",
        "gridY",
        "gridZ",
        "blockX",
        "blockY",
        "blockZ",
        "staticSharedMemory",
        "dynamicSharedMemory",
        "graphId",
        "graphNodeId",
    ),
    RUNTIME: ("start", "end", "globalTid", "correlationId"),
    NVTX: ("start", "end", "eventType", "text", "textId", "globalTid", "domainId"),
    STRINGS: ("id", "value"),
}

TEXT_COLUMNS = frozenset({"text", "value"})

PUSH_POP, START_END, DOMAIN_CREATE = 59, 60, 75
"""NVTX event types. Ranges of the first kind nest per thread and domain, of the second nowhere."""

COSTPROF_DOMAIN = "costprof"
"""The NVTX domain of the ranges that costprof's own scripts emit."""

TID_BITS = 0xFFFFFF
"""The low bits of a globalTid are the thread; without them it is the globalPid."""


def table_columns(connection: sqlite3.Connection) -> dict[str, set[str]]:
    """Return the columns of each table of `COLUMNS` that the export has."""
    found: dict[str, set[str]] = {}
    for table in COLUMNS:
        rows = connection.execute("SELECT name FROM pragma_table_info(?)", (table,)).fetchall()
        if rows:
            found[table] = {name for (name,) in rows}
    return found
