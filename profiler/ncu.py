"""Read hardware counters from ncu: CSV raw pages, and `.ncu-rep` reports without a GPU."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from costprof.core.errors import DatasetError, ExportError, ToolError
from costprof.core.files import replacing
from costprof.profiler.ncu_units import base_unit
from costprof.profiler.parts import no_empty_folders
from costprof.profiler.schema import COUNTERS

Counter = tuple[int, str, str, str, float]
"""Index of the launch, kernel name, metric, base unit, value in it."""

_CONSEQUENCE = "nothing was ingested"
_RAW_PAGE = "make one with ncu --import REPORT --csv --page raw --print-units base"
_REPORT_MAGIC = b"NVR"
_BATCH = 50_000


def ingest_counters(path: Path, out_dir: Path, *, part: str, source: str) -> int:
    """Write the counters of an ncu file as the part `part` of `out_dir`; return their number.

    Only numbers are kept: texts, and columns that say where the profile was made, are not.

    Args:
        path: A `.csv` raw page or a `.ncu-rep` report.
        out_dir: Dataset folder.
        part: Name of the Parquet file, without suffix.
        source: What the column `source` says.

    Raises:
        ExportError: the file is not of that kind, damaged, or holds no counter.
        ToolError: `ncu_report` is needed and not installed.
    """
    read = read_report if path.suffix.lower() == ".ncu-rep" else read_raw_page
    counters = iter(read(path, name=source))
    first = next(counters, None)
    if first is None:
        raise ExportError(
            f"{source} holds no counter of any kernel",
            _CONSEQUENCE,
            "see whether ncu said that no kernels were profiled, or ERR_NVGPUCTRPERM, and whether "
            "the file is whole",
        )
    every = itertools.chain([first], counters)
    with no_empty_folders(out_dir):
        return write_counters(every, out_dir, part=part, source=source)


def write_counters(
    counters: Iterable[Counter],
    out_dir: Path,
    *,
    part: str,
    source: str,
    scenario_id: str | None = None,
) -> int:
    """Write `counters` as the part `part` of `out_dir`, atomically; return their number."""
    count = 0
    with (
        replacing(out_dir / "counters" / f"{part}.parquet") as temporary,
        pq.ParquetWriter(temporary, COUNTERS, compression="zstd") as writer,
    ):
        batch: list[Counter] = []
        for counter in counters:
            batch.append(counter)
            if len(batch) == _BATCH:
                count += _write(writer, batch, source, scenario_id)
                batch = []
        count += _write(writer, batch, source, scenario_id)
    return count


def read_counters(path: Path) -> list[Counter]:
    """Return what `write_counters` wrote into one part.

    Raises:
        DatasetError: the part is damaged or of another schema.
    """
    try:
        table = pq.read_table(path, schema=COUNTERS)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(
            f"{path} is damaged ({str(error).splitlines()[0]})",
            "its counters cannot be read",
            "delete that file and count again with --resume --counters ncu",
        ) from error
    columns = ("kernel_index", "kernel_name", "metric", "unit", "value")
    return list(zip(*(table[name].to_pylist() for name in columns), strict=True))


def read_raw_page(path: Path, *, name: str | None = None) -> Iterator[Counter]:
    """Yield the counters of a CSV raw page, row by row.

    The lines before the header (`==PROF== …`) are what ncu said while it profiled. The second row
    holds units. A kernel has no value in the columns of metrics collected for others only.

    Raises:
        ExportError: there is no header with an "ID" and a "Kernel Name", or a row is cut off.
    """
    label = name or str(path)
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            # strict: a quote that is never closed is an error, not the rest of the file.
            yield from _page_counters(csv.reader(file, strict=True), label)
    except csv.Error as error:
        raise _cut_off(label, str(error)) from error


def _page_counters(rows: Iterator[list[str]], label: str) -> Iterator[Counter]:
    header = next((row for row in rows if "Kernel Name" in row and "ID" in row), None)
    units = next(rows, None) if header is not None else None
    if header is None or units is None:
        raise ExportError(f"{label} is not a raw page of ncu", _CONSEQUENCE, _RAW_PAGE)
    if not units or units[0]:
        raise ExportError(f"{label} has no row of units", _CONSEQUENCE, _RAW_PAGE)
    if len(units) != len(header):
        raise _cut_off(label, f"{len(units)} units for {len(header)} columns")
    kernel_name = header.index("Kernel Name")
    # Metric names have a unit of the GPU and two underscores; what else there is describes the
    # process, the host and the launch.
    metrics = [(i, metric) for i, metric in enumerate(header) if "__" in metric]
    bases = {i: base_unit(units[i]) for i, _ in metrics}
    for index, row in enumerate(row for row in rows if row and not row[0].startswith("==")):
        if len(row) != len(header):
            raise _cut_off(label, f"{len(row)} values for {len(header)} columns")
        for i, metric in metrics:
            value = _number(row[i])
            if value is not None:
                unit, factor = bases[i]
                yield index, row[kernel_name], metric, unit, value * factor


def read_report(path: Path, *, name: str | None = None) -> Iterator[Counter]:
    """Yield the counters of a `.ncu-rep` report, launch by launch.

    Raises:
        ToolError: the package `ncu_report` is not installed.
        ExportError: it cannot read the report.
    """
    label = name or str(path)
    try:
        import ncu_report
    except ImportError as error:
        raise ToolError(
            "the package ncu_report is not installed",
            f"{label} cannot be read",
            "pip install 'costprof[ncu]', or give the CSV raw page instead",
        ) from error
    with path.open("rb") as file:
        # The package takes any file, and finds nothing in one of another kind.
        if file.read(len(_REPORT_MAGIC)) != _REPORT_MAGIC:
            raise _unreadable(label, "it does not begin as one")
    try:
        report = ncu_report.load_report(str(path))
    except Exception as error:  # The package raises bare exceptions of several kinds.
        raise _unreadable(label, error) from error
    index = 0
    for range_index in range(report.num_ranges()):
        actions = report.range_by_idx(range_index)
        for action_index in range(actions.num_actions()):
            action = actions.action_by_idx(action_index)
            kernel = str(action.name(action.NameBase_DEMANGLED))
            for metric in sorted(action.metric_names()):
                counter = action.metric_by_name(metric)
                value = _report_number(counter) if "__" in metric else None
                if value is not None and not metric.startswith("breakdown:"):
                    unit, factor = base_unit(str(counter.unit()))
                    yield index, kernel, metric, unit, value * factor
            index += 1


def _write(
    writer: pq.ParquetWriter, batch: list[Counter], source: str, scenario_id: str | None
) -> int:
    if batch:
        origin = [[source] * len(batch), [scenario_id] * len(batch)]
        columns = [*origin, *map(list, zip(*batch, strict=True))]
        writer.write_table(pa.table(dict(zip(COUNTERS.names, columns, strict=True)), COUNTERS))
    return len(batch)


def _number(text: str) -> float | None:
    """The number in a cell, or None: empty, `n/a`, `no data`, a name."""
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _report_number(counter: Any) -> float | None:
    value = counter.value()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _cut_off(label: str, reason: str) -> ExportError:
    return ExportError(f"{label} was cut off ({reason})", _CONSEQUENCE, _RAW_PAGE)


def _unreadable(label: str, reason: object) -> ExportError:
    return ExportError(
        f"{label} cannot be read as an ncu report ({' '.join(str(reason).split()) or 'no reason'})",
        _CONSEQUENCE,
        "it may be damaged, or newer than ncu_report: pip install -U ncu_report",
    )
