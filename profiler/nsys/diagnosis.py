"""Why a capture is empty: what nsys itself noted while it ran."""

from __future__ import annotations

import re
import sqlite3

from costprof.profiler.nsys.schema import DIAGNOSTIC

_WARNING, _ERROR = 2, 3
_SHOWN = 5
_RELEVANT = re.compile(r"CUDA|CUPTI|NVTX|driver", re.IGNORECASE)


def read_diagnosis(connection: sqlite3.Connection) -> str:
    """Return the warnings and errors that bear on CUDA, CUPTI, NVTX or the driver, "" if none.

    A warning about the driver comes first, because what follows it is usually its consequence.
    Exports before schema 3.13 have no such table.
    """
    try:
        rows = connection.execute(
            f"SELECT severity, text FROM {DIAGNOSTIC} WHERE severity >= ? ORDER BY timestamp",
            (_WARNING,),
        ).fetchall()
    except sqlite3.OperationalError:
        return ""
    ranked: dict[str, int] = {}
    for severity, text in rows:
        line = " ".join(str(text).split()).rstrip(".")
        if _RELEVANT.search(line):
            rank = 0 if "driver" in line.lower() else 1 if severity >= _ERROR else 2
            ranked.setdefault(line, rank)
    return " | ".join(sorted(ranked, key=lambda line: ranked[line])[:_SHOWN])
