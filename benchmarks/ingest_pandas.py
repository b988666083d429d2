"""What a good engineer writes with pandas and sqlite3: the reference `benchmarks/ingest.py` times.

    python benchmarks/ingest_pandas.py EXPORT OUT.parquet

Every step is vectorised, only needed columns are read, and the output has the columns of
`kernels/`. It assumes an intact capture, whose ranges nest.
"""

from __future__ import annotations

import sqlite3
import sys

import numpy as np
import pandas as pd

_TID = ~0xFFFFFF

_KERNELS = """
    SELECT start AS start_ns, "end" AS end_ns, deviceId AS device_index, contextId AS context_id,
        streamId AS stream_id, globalPid AS global_pid, correlationId AS correlation_id,
        gridX AS grid_x, gridY AS grid_y, gridZ AS grid_z, blockX AS block_x, blockY AS block_y,
        blockZ AS block_z, registersPerThread AS registers_per_thread,
        staticSharedMemory AS static_shared_bytes, dynamicSharedMemory AS dynamic_shared_bytes,
        graphNodeId AS graph_node_id, shortName, demangledName
    FROM CUPTI_ACTIVITY_KIND_KERNEL
"""
_CALLS = """
    SELECT start AS launch_start_ns, "end" AS launch_end_ns, globalTid AS launch_global_tid,
        correlationId AS correlation_id
    FROM CUPTI_ACTIVITY_KIND_RUNTIME
"""
_RANGES = """
    SELECT start, "end", globalTid AS tid, coalesce(text, value) AS text
    FROM NVTX_EVENTS LEFT JOIN StringIds ON StringIds.id = textId
    WHERE eventType = 59 AND "end" IS NOT NULL
    ORDER BY globalTid, start, "end" DESC
"""


def _sweep(ranges: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """Segments (tid, at, range or -1) and the parent of each range, level by level."""
    count = len(ranges)
    tid, start, end = (ranges[name].to_numpy() for name in ("tid", "start", "end"))
    event = np.concatenate([np.arange(count), np.arange(count)])
    opens = np.repeat([1, -1], count)
    # At one moment what ends goes before what begins.
    order = np.lexsort((event, opens, np.concatenate([start, end]), tid[event]))
    event, opens = event[order], opens[order]
    depth = np.cumsum(opens) - (opens == 1)
    parent = np.full(count, -1)
    for level in range(1, int(depth.max(initial=0)) + 1):
        above = np.where((opens == 1) & (depth == level - 1), np.arange(2 * count), -1)
        latest = np.maximum.accumulate(above)
        here = (opens == 1) & (depth == level)
        parent[event[here]] = event[latest[here]]
    at = np.concatenate([start, end])[order]
    owner = np.where(opens == 1, event, parent[event])
    return pd.DataFrame({"tid": tid[event], "at": at, "range": owner}), parent


def _paths(texts: np.ndarray, parent: np.ndarray) -> list[list[str]]:
    paths: list[list[str]] = []
    # Parents come before their children in the order of the query.
    for text, above in zip(texts.tolist(), parent.tolist(), strict=True):
        paths.append([*paths[above], text] if above >= 0 else [text])
    return paths


def ingest(export: str, target: str) -> None:
    """Write the kernels of `export`, attributed to ranges, to the Parquet file `target`."""
    connection = sqlite3.connect(f"file:{export}?mode=ro", uri=True)
    kernels = pd.read_sql_query(_KERNELS, connection)
    calls = pd.read_sql_query(_CALLS, connection)
    ranges = pd.read_sql_query(_RANGES, connection)
    names = pd.read_sql_query("SELECT id, value FROM StringIds", connection)
    connection.close()

    calls["global_pid"] = calls["launch_global_tid"] & _TID
    calls = calls.sort_values("launch_start_ns")
    calls = calls.drop_duplicates(["global_pid", "correlation_id"])
    segments, parent = _sweep(ranges)
    calls = pd.merge_asof(
        calls,
        segments.sort_values("at", kind="stable"),
        left_on="launch_start_ns",
        right_on="at",
        left_by="launch_global_tid",
        right_by="tid",
    ).drop(columns=["at", "tid"])
    calls["range"] = calls["range"].fillna(-1).astype("int64")

    kernels = kernels.merge(calls, on=["global_pid", "correlation_id"], how="left")
    values = names.set_index("id")["value"].astype("category")
    kernels["name"] = kernels.pop("shortName").map(values)
    kernels["demangled_name"] = kernels.pop("demangledName").map(values)
    kernels["duration_ns"] = kernels["end_ns"] - kernels["start_ns"]
    owner = kernels.pop("range")
    kernels["attribution"] = np.select(
        [owner.isna(), owner == -1], ["no_launch_row", "no_range"], "attributed"
    )
    index = owner.fillna(-1).astype("int64").to_numpy()
    texts = np.append(ranges["text"].to_numpy(dtype=object), None)
    paths = np.empty(len(ranges) + 1, dtype=object)
    paths[:-1] = _paths(texts[:-1], parent)
    kernels["range_id"] = pd.Series(index).where(index >= 0)
    kernels["range_text"] = texts[index]
    kernels["range_path"] = paths[index]
    kernels["range_domain"] = np.where(index >= 0, "", None)
    kernels["source"] = "export"
    kernels.to_parquet(target, compression="zstd", index=False)


if __name__ == "__main__":
    ingest(sys.argv[1], sys.argv[2])
