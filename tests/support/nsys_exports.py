"""A builder of small nsys exports in the columns of several versions."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_KERNEL = [
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
    "graphNodeId",
]
_RUNTIME = [
    "start",
    "end",
    "eventClass",
    "globalTid",
    "correlationId",
    "nameId",
    "returnValue",
]
_NVTX = [
    "start",
    "end",
    "eventType",
    "rangeId",
    "text",
    "globalTid",
    "textId",
    "domainId",
]

SCHEMAS: dict[str, dict[str, Any]] = {
    "2.9": {"meta": "EXPORT_META_DATA", "kernel": _KERNEL, "runtime": [*_RUNTIME, "name"]},
    "3.13": {
        "meta": "META_DATA_EXPORT",
        "kernel": [*_KERNEL, "greenContextId"],
        "runtime": _RUNTIME,
    },
    "3.25": {
        "meta": "META_DATA_EXPORT",
        "kernel": [*_KERNEL, "greenContextId", "graphId", "clusterX", "tensorSizeMinusOneElements"],
        "runtime": _RUNTIME,
    },
    # Older or newer than any seen: the columns that are not needed are gone.
    "bare": {
        "meta": "META_DATA_EXPORT",
        "kernel": ["start", "end", "correlationId", "globalPid", "shortName"],
        "runtime": ["start", "end", "globalTid", "correlationId"],
    },
}

Rows = Iterable[Mapping[str, Any]]


@dataclass
class Export:
    """Rows of a synthetic export. A table without rows is left out, as nsys does."""

    kernels: list[dict[str, Any]] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    strings: dict[int, str] = field(default_factory=dict)
    diagnostics: list[tuple[int, str]] = field(default_factory=list)
    secrets: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)

    def write(self, path: Path, schema: str = "3.13") -> Path:
        """Write the export to `path` in the columns of `schema`."""
        layout = SCHEMAS[schema]
        connection = sqlite3.connect(path)
        _table(connection, layout["meta"], ["name", "value"], {"name", "value"})
        connection.executemany(
            f"INSERT INTO {layout['meta']} VALUES (?, ?)",
            [("EXPORT_PRODUCT_VERSION", "9.9.9"), ("EXPORT_SCHEMA_VERSION", schema)],
        )
        _fill(connection, "CUPTI_ACTIVITY_KIND_KERNEL", layout["kernel"], self.kernels)
        _fill(connection, "CUPTI_ACTIVITY_KIND_RUNTIME", layout["runtime"], self.calls)
        _fill(connection, "NVTX_EVENTS", _NVTX, self.events)
        strings = [{"id": key, "value": value} for key, value in self.strings.items()]
        _fill(connection, "StringIds", ["id", "value"], strings)
        diagnostics = [
            {"timestamp": i, "severity": severity, "text": text}
            for i, (severity, text) in enumerate(self.diagnostics)
        ]
        _fill(connection, "DIAGNOSTIC_EVENT", ["timestamp", "severity", "text"], diagnostics)
        for name, rows in self.secrets.items():
            columns = [f"c{i}" for i in range(len(rows[0]))]
            _table(connection, name, columns, set(columns))
            marks = ", ".join("?" for _ in columns)
            connection.executemany(f"INSERT INTO {name} VALUES ({marks})", rows)
        connection.commit()
        connection.close()
        return path


def _table(connection: sqlite3.Connection, name: str, columns: list[str], text: set[str]) -> None:
    kinds = ", ".join(f'"{c}" {"TEXT" if c in text else "INTEGER"}' for c in columns)
    connection.execute(f"CREATE TABLE {name} ({kinds})")


def _fill(connection: sqlite3.Connection, name: str, columns: list[str], rows: Rows) -> None:
    rows = list(rows)
    if not rows:
        return
    _table(connection, name, columns, {"text", "value", "name", "tensorSizeMinusOneElements"})
    marks = ", ".join("?" for _ in columns)
    values = [[row.get(column) for column in columns] for row in rows]
    connection.executemany(f"INSERT INTO {name} VALUES ({marks})", values)


def thread(pid: int, tid: int) -> int:
    """The globalTid of a thread; with `tid` 0 the globalPid."""
    return (0x1000000 + pid) << 24 | tid
