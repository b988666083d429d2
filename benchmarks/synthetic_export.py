"""Write a large nsys export that is true to the schema of a recent version (3.13).

The shape is that of a training step under `emit_nvtx`: several threads of two processes launch
kernels inside nested ranges; some launches fall outside any range, and some kernels have no
launch row because a capture window cut it off. Equal correlation ids occur in both processes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np

PROCESSES = 2
THREADS_PER_PROCESS = 2
NAMES = 64
TEXTS = 400
NESTING = 4
"""Ranges come in fours: one outer, one in it, and two leaves in that."""

_PERIOD_NS = 4000
_CHUNK = 50_000

_TABLES = """
CREATE TABLE META_DATA_EXPORT (name TEXT NOT NULL, value TEXT);
CREATE TABLE StringIds (id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE TARGET_INFO_SYSTEM_ENV (globalVid INTEGER, devStateName TEXT NOT NULL,
    name TEXT NOT NULL, nameEnum INTEGER NOT NULL, value TEXT NOT NULL);
CREATE TABLE NVTX_EVENTS (start INTEGER NOT NULL, end INTEGER, eventType INTEGER NOT NULL,
    rangeId INTEGER, category INTEGER, color INTEGER, text TEXT, globalTid INTEGER,
    endGlobalTid INTEGER, textId INTEGER, domainId INTEGER, uint64Value INTEGER,
    int64Value INTEGER, doubleValue REAL, uint32Value INTEGER, int32Value INTEGER,
    floatValue REAL, jsonTextId INTEGER, jsonText TEXT);
CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start INTEGER NOT NULL, end INTEGER NOT NULL,
    eventClass INTEGER NOT NULL, globalTid INTEGER, correlationId INTEGER,
    nameId INTEGER NOT NULL, returnValue INTEGER NOT NULL, callchainId INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER NOT NULL, end INTEGER NOT NULL,
    deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL, greenContextId INTEGER,
    streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER,
    demangledName INTEGER NOT NULL, shortName INTEGER NOT NULL, mangledName INTEGER,
    launchType INTEGER, cacheConfig INTEGER, registersPerThread INTEGER NOT NULL,
    gridX INTEGER NOT NULL, gridY INTEGER NOT NULL, gridZ INTEGER NOT NULL,
    blockX INTEGER NOT NULL, blockY INTEGER NOT NULL, blockZ INTEGER NOT NULL,
    staticSharedMemory INTEGER NOT NULL, dynamicSharedMemory INTEGER NOT NULL,
    localMemoryPerThread INTEGER NOT NULL, localMemoryTotal INTEGER NOT NULL,
    gridId INTEGER NOT NULL, sharedMemoryExecuted INTEGER, graphNodeId INTEGER,
    sharedMemoryLimitConfig INTEGER);
"""


def write_export(path: Path, *, kernels: int, ranges: int, seed: int = 0) -> None:
    """Write an export of `kernels` kernels, as many launches, and `ranges` push/pop ranges."""
    rng = np.random.default_rng(seed)
    connection = sqlite3.connect(path)
    try:
        connection.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;" + _TABLES)
        _write_texts(connection)
        threads = PROCESSES * THREADS_PER_PROCESS
        for thread in range(threads):
            count = kernels // threads + (thread < kernels % threads)
            own_ranges = ranges // threads + (thread < ranges % threads)
            _write_thread(connection, rng, thread, count, own_ranges)
        connection.commit()
    finally:
        connection.close()


def _write_texts(connection: sqlite3.Connection) -> None:
    names = [(i, f"kernel_{i:02d}") for i in range(NAMES)]
    full = [(NAMES + i, f"void kernel_{i:02d}<float, {i}>(float*, int)") for i in range(NAMES)]
    texts = [(2 * NAMES + i, f"range {i:03d}") for i in range(TEXTS)]
    connection.executemany("INSERT INTO StringIds VALUES (?, ?)", names + full + texts)
    connection.executemany(
        "INSERT INTO META_DATA_EXPORT VALUES (?, ?)",
        [("EXPORT_PRODUCT_VERSION", "2024.5.1.113"), ("EXPORT_SCHEMA_VERSION", "3.13.2")],
    )


def _write_thread(
    connection: sqlite3.Connection, rng: np.random.Generator, thread: int, count: int, ranges: int
) -> None:
    process, lane = divmod(thread, THREADS_PER_PROCESS)
    global_pid = (0x1000000 + 1000 + process) << 24
    global_tid = global_pid | (2000 + thread)
    launch = np.arange(count, dtype=np.int64) * _PERIOD_NS + 1000 + rng.integers(0, 900, count)
    # Unique in a process, equal across processes.
    correlation = np.arange(count, dtype=np.int64) * THREADS_PER_PROCESS + lane + 1
    launch_end = launch + rng.integers(500, 1500, count)
    begin = launch + 5000 + rng.integers(0, 2000, count)
    end = begin + rng.integers(500, 3000, count)
    name = rng.integers(0, NAMES, count)
    has_row = rng.random(count) >= 0.05

    zeros = np.zeros(count, dtype=np.int64)
    _insert(
        connection,
        "INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES (?, ?, 0, ?, ?, 1, 0, NULL)",
        # A call that launches nothing stands in for the launch that was cut off.
        [launch, launch_end, zeros + global_tid, np.where(has_row, correlation, -1 - correlation)],
    )
    _insert(
        connection,
        "INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (?, ?, ?, 1, NULL, ?, ?, ?, ?, ?, NULL,"
        " 1, 0, 32, ?, 1, 1, 256, 1, 1, 0, 1024, 0, 0, ?, NULL, NULL, 0)",
        [
            begin,
            end,
            zeros + process,
            zeros + 7 + lane,
            correlation,
            zeros + global_pid,
            name + NAMES,
            name,
            rng.integers(1, 4096, count),
            np.arange(count, dtype=np.int64),
        ],
    )
    _insert(
        connection,
        "INSERT INTO NVTX_EVENTS (start, end, eventType, globalTid, textId, text, domainId)"
        " VALUES (?, ?, 59, ?, ?, ?, 0)",
        _ranges(rng, ranges, count * _PERIOD_NS, global_tid),
    )


def _ranges(
    rng: np.random.Generator, count: int, span_ns: int, global_tid: int
) -> list[np.ndarray]:
    """Columns start, end, tid, textId, text of nested ranges that cover 90 % of `span_ns`."""
    groups = -(-count // NESTING)
    width = span_ns // max(groups, 1)
    start = np.arange(groups, dtype=np.int64) * width
    at = np.array([0.0, 0.05, 0.1, 0.5])
    until = np.array([0.9, 0.85, 0.45, 0.8])
    starts = _between_calls(start[:, None] + at * width)[:count]
    ends = _between_calls(start[:, None] + until * width)[:count]
    # A text stands at one level only: nsys stats counts a range inside its namesake its own way.
    text = rng.integers(0, TEXTS // NESTING, count) * NESTING + np.arange(count) % NESTING
    # As in real exports, the text is in the row or in StringIds.
    inline = rng.random(count) < 0.5
    text_id = np.where(inline, None, text + 2 * NAMES)
    in_row = np.where(inline, np.char.add("range ", np.char.zfill(text.astype(str), 3)), None)
    return [starts, ends, np.full(count, global_tid), text_id, in_row]


def _between_calls(moments: np.ndarray) -> np.ndarray:
    """Round down to where no call is running: on a thread, ranges never end inside a call."""
    return (moments // _PERIOD_NS).astype(np.int64).ravel() * _PERIOD_NS


def _insert(connection: sqlite3.Connection, statement: str, columns: list[np.ndarray]) -> None:
    connection.executemany(statement, _rows(columns))


def _rows(columns: list[np.ndarray]) -> Iterator[tuple[object, ...]]:
    for offset in range(0, len(columns[0]), _CHUNK):
        yield from zip(*(c[offset : offset + _CHUNK].tolist() for c in columns), strict=True)
