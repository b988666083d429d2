"""Write `kernels` and `ranges` Parquet from a staged export, each kernel with the range it is of.

A kernel belongs to the range its *launch* was made in, never to one that is open when it runs:
launches are asynchronous. The launch is found by process and correlation id, which is unique per
process only. A graph launch is one launch of many kernels; each of them carries it.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from costprof.profiler.duck import quoted_text
from costprof.profiler.nsys.export import ExportInfo
from costprof.profiler.nsys.schema import COSTPROF_DOMAIN, KERNEL
from costprof.profiler.nsys.stage import source_rows

_SCENARIO = r"^(.+):([0-9]{1,18})$"
"""Text of the ranges a sweep emits: scenario id, repetition."""

# Measured on two million kernels: with row groups of the default 122880 rows the texts of ranges
# outgrow their dictionaries, and writing takes twice the time.
_FORMAT = (
    "FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, PARQUET_VERSION v2, "
    "ROW_GROUP_SIZE 61440, DICTIONARY_SIZE_LIMIT 6000"
)


def copy_kernels(
    connection: duckdb.DuckDBPyConnection, info: ExportInfo, schema: str, source: str, target: Path
) -> None:
    """Stream all kernels of the attached export to the Parquet file `target`.

    Every join is on plain equalities between staged tables, which NULL never meets: one more
    condition, or a join inside the join, makes DuckDB loop over all pairs, minutes for seconds.
    """
    rows = f"""
        SELECT
            {quoted_text(source)} AS source,
            kernel.start AS start_ns,
            kernel."end" AS end_ns,
            kernel."end" - kernel.start AS duration_ns,
            short.value AS name,
            demangled.value AS demangled_name,
            kernel.deviceId AS device_index,
            kernel.contextId AS context_id,
            kernel.streamId AS stream_id,
            kernel.globalPid AS global_pid,
            kernel.correlationId AS correlation_id,
            kernel.gridX AS grid_x,
            kernel.gridY AS grid_y,
            kernel.gridZ AS grid_z,
            kernel.blockX AS block_x,
            kernel.blockY AS block_y,
            kernel.blockZ AS block_z,
            kernel.registersPerThread AS registers_per_thread,
            kernel.staticSharedMemory AS static_shared_bytes,
            kernel.dynamicSharedMemory AS dynamic_shared_bytes,
            kernel.graphId AS graph_id,
            kernel.graphNodeId AS graph_node_id,
            CASE
                WHEN launch.range_id IS NULL THEN 'no_launch_row'
                WHEN launch.range_id = -1 THEN 'no_range'
                ELSE 'attributed'
            END AS attribution,
            launch.start_ns AS launch_start_ns,
            launch.end_ns AS launch_end_ns,
            launch.global_tid AS launch_global_tid,
            nullif(launch.range_id, -1) AS range_id,
            ranges.text AS range_text,
            ranges.domain AS range_domain,
            ranges.path AS range_path
        FROM {source_rows(info, schema, KERNEL)} AS kernel
        LEFT JOIN launches AS launch
            ON kernel.globalPid = launch.global_pid
            AND kernel.correlationId = launch.correlation_id
        LEFT JOIN ranges ON launch.range_id = ranges.range_id
        LEFT JOIN strings AS short ON kernel.shortName = short.id
        LEFT JOIN strings AS demangled ON kernel.demangledName = demangled.id
    """
    connection.execute(f"COPY ({rows}) TO {quoted_text(str(target))} ({_FORMAT})")


def copy_ranges(connection: duckdb.DuckDBPyConnection, source: str, target: Path) -> None:
    """Write the staged ranges to the Parquet file `target`.

    API time is that of the launches table, where each call has one row, so a graph launch is
    charged once however many kernels it starts.
    """
    rows = f"""
        WITH api AS (
            SELECT range_id, count(*) AS calls, sum(end_ns - start_ns) AS total_ns
            FROM launches WHERE range_id <> -1 GROUP BY range_id
        ),
        scenario AS (
            SELECT range_id, regexp_extract(text, {quoted_text(_SCENARIO)}, 1) AS id,
                regexp_extract(text, {quoted_text(_SCENARIO)}, 2) AS repetition
            FROM ranges WHERE domain = {quoted_text(COSTPROF_DOMAIN)}
        )
        SELECT
            {quoted_text(source)} AS source,
            ranges.range_id,
            parent_id,
            depth,
            kind,
            domain,
            text,
            path,
            global_tid,
            start_ns,
            end_ns,
            end_ns - start_ns AS duration_ns,
            self_ns,
            coalesce(api.calls, 0) AS api_calls,
            CAST(coalesce(api.total_ns, 0) AS BIGINT) AS api_ns,
            nullif(scenario.id, '') AS scenario_id,
            CAST(nullif(scenario.repetition, '') AS BIGINT) AS repetition
        FROM ranges
        LEFT JOIN api ON api.range_id = ranges.range_id
        LEFT JOIN scenario ON scenario.range_id = ranges.range_id
    """
    connection.execute(f"COPY ({rows}) TO {quoted_text(str(target))} ({_FORMAT})")
