"""Times of the calls a sweep made, from the parts ingest wrote: for GPU and CPU experts alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from costprof.core.errors import DatasetError
from costprof.profiler.duck import connect, literal_file
from costprof.profiler.schema import KERNELS, RANGES


def scenario_times(out_dir: Path, parts: Sequence[str] | None = None) -> pa.Table:
    """Return one row per `costprof` range with a scenario id, in order of start.

    Columns: `source`, `range_id`, `scenario_id`, `repetition`, `global_tid`, `start_ns`,
    `duration_ns` (of the range, the time of a CPU expert), `kernels` (launched in the range),
    `kernel_sum_ns` (0 without kernels), `kernel_span_ns` (first start to last end, NULL without
    kernels).

    Args:
        out_dir: Dataset folder.
        parts: Names of the parts to read, by default all.

    Raises:
        DatasetError: a named part, or every part, is missing.
    """
    ranges = _files(out_dir / "ranges", parts)
    if not ranges or (parts is not None and len(ranges) < len(set(parts))):
        raise DatasetError(
            f"{out_dir} lacks ranges of {', '.join(parts) if parts else 'any part'}",
            "no call can be timed",
            "ingest the export of the run first",
        )
    kernels = _files(out_dir / "kernels", parts)
    with connect() as connection:
        for name, files, schema in (("range_", ranges, RANGES), ("kernel", kernels, KERNELS)):
            # CPU runs have no kernels part at all.
            connection.register("nothing", schema.empty_table())
            connection.execute(f"CREATE TEMP TABLE {name}_columns AS FROM nothing")
            rows = "FROM read_parquet($1)" if files else f"FROM {name}_columns"
            columns = (
                "source, range_id, scenario_id, repetition, global_tid, start_ns, duration_ns"
                if name == "range_"
                else "source, range_id, start_ns, end_ns, duration_ns"
            )
            connection.execute(
                f"CREATE TEMP TABLE {name} AS SELECT {columns} {rows} WHERE range_id IS NOT NULL",
                [files] if files else [],
            )
        return connection.execute(
            """
            SELECT r.source, r.range_id, r.scenario_id, r.repetition, r.global_tid, r.start_ns,
                r.duration_ns,
                count(k.range_id) AS kernels,
                CAST(coalesce(sum(k.duration_ns), 0) AS BIGINT) AS kernel_sum_ns,
                max(k.end_ns) - min(k.start_ns) AS kernel_span_ns
            FROM range_ AS r
            LEFT JOIN kernel AS k ON k.source = r.source AND k.range_id = r.range_id
            WHERE r.scenario_id IS NOT NULL
            GROUP BY ALL
            ORDER BY r.source, r.start_ns, r.range_id
            """
        ).to_arrow_table()


def _files(folder: Path, parts: Sequence[str] | None) -> list[str]:
    if parts is None:
        return [literal_file(path) for path in sorted(folder.glob("*.parquet"))]
    paths = [folder / f"{part}.parquet" for part in dict.fromkeys(parts)]
    return [literal_file(path) for path in paths if path.is_file()]
