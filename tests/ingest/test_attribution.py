"""Kernels belong to the range they were launched in, whatever the export looks like."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nsys_exports import SCHEMAS, Export, thread
from nsys_reference import OPEN, Range, Reference, attribution

from costprof.profiler.ingest import IngestSummary, ingest_export
from costprof.profiler.schema import KERNELS, RANGES

REAL = {
    "a100_cloverleaf_nsys2024.5_schema3.13.sqlite": (1312, 0, 1312, 0),
    "a100_mpi_saxpy_nsys2022.2_schema2.9.sqlite": (5, 5, 0, 0),
    "a100_one_kernel_nsys2022.4_schema3.0.sqlite": (1, 0, 1, 0),
    "h100_two_gpus_windowed_nsys2026.2_schema3.25.sqlite": (3442, 1632, 0, 1810),
    "rtx3080_two_kernels_nsys2026.1_schema3.24.sqlite": (2, 0, 2, 0),
}


def _ingest(path: Path, out: Path) -> tuple[IngestSummary, list[dict[str, Any]]]:
    summary = ingest_export(path, out, part="p", source=path.name)
    kernels = out / "kernels/p.parquet"
    return summary, pq.read_table(kernels).to_pylist() if kernels.exists() else []


def _as_reference(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    found = []
    for row in rows:
        launch = (row["launch_start_ns"], row["launch_end_ns"], row["launch_global_tid"])
        found.append(
            (
                row["start_ns"],
                row["end_ns"],
                row["global_pid"],
                row["correlation_id"],
                row["name"],
                row["attribution"],
                None if launch[0] is None else launch,
                row["range_text"],
                row["range_domain"],
                None if row["range_path"] is None else tuple(row["range_path"]),
            )
        )
    return sorted(found, key=repr)


@pytest.mark.parametrize("name", REAL)
def test_real_exports_agree_with_the_reference(name: str, nsys_data: Path, tmp_path: Path) -> None:
    summary, rows = _ingest(nsys_data / name, tmp_path)
    counts = (summary.kernels, summary.attributed, summary.no_range, summary.no_launch_row)
    assert counts == REAL[name]
    assert summary.attributed + summary.no_range + summary.no_launch_row == summary.kernels
    assert len(rows) == summary.kernels
    assert _as_reference(rows) == attribution(nsys_data / name)


def test_columns_are_those_of_the_contract(nsys_data: Path, tmp_path: Path) -> None:
    _ingest(nsys_data / "a100_mpi_saxpy_nsys2022.2_schema2.9.sqlite", tmp_path)
    assert pq.read_schema(tmp_path / "kernels/p.parquet").equals(KERNELS)
    assert pq.read_schema(tmp_path / "ranges/p.parquet").equals(RANGES)
    codecs = {
        group.column(i).compression
        for group in [pq.read_metadata(tmp_path / "kernels/p.parquet").row_group(0)]
        for i in range(group.num_columns)
    }
    assert codecs == {"ZSTD"}


def test_the_mpi_kernels_are_in_their_saxpy_ranges(nsys_data: Path, tmp_path: Path) -> None:
    _, rows = _ingest(nsys_data / "a100_mpi_saxpy_nsys2022.2_schema2.9.sqlite", tmp_path)
    assert [row["range_path"] for row in rows] == [["saxpy"]] * 5
    ranges = pq.read_table(tmp_path / "ranges/p.parquet").to_pylist()
    domains = {(row["domain"], row["text"] == "saxpy") for row in ranges}
    assert domains == {("MPI", False), ("", True)}


_MOMENT = st.integers(0, 24)
_TIDS = [thread(1, 1), thread(1, 2), thread(2, 1)]
_STRINGS = {1: "one", 2: "two", 3: "costprof", 4: "other"}
_TEXT = st.one_of(
    st.fixed_dictionaries({"text": st.sampled_from("abc")}),
    st.fixed_dictionaries({"textId": st.sampled_from([1, 2, 99])}),
)
_DOMAIN = st.sampled_from([None, 0, 1, 2, 7])


@st.composite
def _event(draw: st.DrawFn) -> dict[str, Any]:
    start = draw(_MOMENT)
    kind = draw(st.sampled_from([59, 59, 59, 60, 34]))
    end = None if kind == 34 else draw(st.one_of(st.none(), st.integers(start, 25)))
    return {
        "start": start,
        "end": end,
        "eventType": kind,
        "globalTid": draw(st.sampled_from(_TIDS)),
        "domainId": draw(_DOMAIN),
        **draw(_TEXT),
    }


@st.composite
def _nested(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A stack as an intact capture holds it: halves within halves."""
    tid, domain = draw(st.sampled_from(_TIDS)), draw(_DOMAIN)
    events = []
    start, end = 0, 24
    for depth in range(draw(st.integers(1, 4))):
        common = {"eventType": 59, "globalTid": tid, "domainId": domain}
        events.append({"start": start, "end": end, "text": f"depth{depth}", **common})
        middle = (start + end) // 2
        start, end = draw(st.sampled_from([(start, middle), (middle, end)]))
    return events


_CALL = st.builds(
    lambda start, length, tid, correlation: {
        "start": start,
        "end": start + length,
        "globalTid": tid,
        "correlationId": correlation,
    },
    _MOMENT,
    st.integers(0, 3),
    st.sampled_from(_TIDS),
    st.one_of(st.none(), st.integers(-1, 5)),
)
_KERNEL = st.builds(
    lambda start, pid, correlation, name, node: {
        "start": start,
        "end": start + 5,
        "globalPid": pid,
        "correlationId": correlation,
        "shortName": name,
        "demangledName": name,
        "graphNodeId": node,
    },
    _MOMENT,
    st.sampled_from([thread(1, 0), thread(2, 0), None]),
    st.one_of(st.none(), st.integers(-1, 5)),
    st.sampled_from([1, 2, 99]),
    st.sampled_from([None, 8]),
)
_EXPORTS = st.builds(
    lambda kernels, calls, loose, nested: Export(
        kernels=kernels,
        calls=calls,
        events=[
            {"start": 0, "eventType": 75, "globalTid": _TIDS[0], "domainId": 1, "textId": 3},
            {"start": 0, "eventType": 75, "globalTid": _TIDS[0], "domainId": 2, "text": "other"},
            # Domain 1 of the other process is another domain.
            {"start": 0, "eventType": 75, "globalTid": _TIDS[2], "domainId": 1, "text": "MPI"},
            *loose,
            *(event for stack in nested for event in stack),
        ],
        strings=_STRINGS,
    ),
    st.lists(_KERNEL, min_size=1, max_size=8),
    st.lists(_CALL, max_size=12),
    st.lists(_event(), max_size=8),
    st.lists(_nested(), max_size=3),
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(export=_EXPORTS, schema=st.sampled_from(sorted(SCHEMAS)))
def test_any_export_agrees_with_the_reference(export: Export, schema: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = export.write(Path(folder) / "e.sqlite", schema)
        summary, rows = _ingest(path, Path(folder) / "out")
        assert summary.kernels == len(export.kernels)
        assert _as_reference(rows) == attribution(path)
        _check_ranges(path, Path(folder) / "out/ranges/p.parquet")


def _check_ranges(export: Path, part: Path) -> None:
    reference = Reference(export)
    every = [item for ranges in reference.ranges.values() for item in ranges]
    expected = []
    for item in every:
        parent = reference.parent(item)
        children = [c for c in every if reference.parent(c) is item]
        self_ns = item.end - item.start - sum(c.end - c.start for c in children)
        expected.append(
            (
                item.tid,
                item.start,
                _end(item),
                "push_pop" if item.kind == 59 else "start_end",
                item.domain,
                item.text,
                tuple(reference.path(item)),
                parent and (parent.start, _end(parent), parent.text),
                None if item.end == OPEN else max(0, self_ns),
            )
        )
    rows = pq.read_table(part).to_pylist() if part.exists() else []
    by_id = {row["range_id"]: row for row in rows}
    assert len(by_id) == len(rows)
    found = []
    for row in rows:
        parent = by_id.get(row["parent_id"])
        assert row["depth"] == len(row["path"]) - 1
        ended = row["end_ns"] is not None
        assert row["duration_ns"] == (row["end_ns"] - row["start_ns"] if ended else None)
        found.append(
            (
                row["global_tid"],
                row["start_ns"],
                row["end_ns"],
                row["kind"],
                row["domain"],
                row["text"],
                tuple(row["path"]),
                parent and (parent["start_ns"], parent["end_ns"], parent["text"]),
                row["self_ns"],
            )
        )
    assert sorted(found, key=repr) == sorted(expected, key=repr)


def _end(item: Range) -> int | None:
    return None if item.end == OPEN else item.end


TID = thread(1, 1)
PID = thread(1, 0)


def _kernel(start: int, correlation: int, **more: Any) -> dict[str, Any]:
    row = {"start": start, "end": start + 10, "globalPid": PID, "correlationId": correlation}
    return {**row, "shortName": 1, "demangledName": 2, **more}


def _range(start: int, end: int, text: str, **more: Any) -> dict[str, Any]:
    row = {"start": start, "end": end, "eventType": 59, "globalTid": TID, "domainId": 0}
    return {**row, "text": text, **more}


def _call(start: int, correlation: int, tid: int = TID) -> dict[str, Any]:
    return {"start": start, "end": start + 5, "globalTid": tid, "correlationId": correlation}


def test_the_launch_decides_not_the_time_on_the_gpu(tmp_path: Path) -> None:
    export = Export(
        kernels=[_kernel(1000, 1)],
        calls=[_call(10, 1)],
        events=[_range(0, 50, "launched"), _range(900, 2000, "running")],
        strings={1: "k", 2: "void k<int>()"},
    )
    _, rows = _ingest(export.write(tmp_path / "e.sqlite"), tmp_path)
    assert rows[0]["range_text"] == "launched"
    assert (rows[0]["name"], rows[0]["demangled_name"]) == ("k", "void k<int>()")


def test_a_range_that_is_open_when_the_capture_closes_owns_what_was_launched_in_it(
    tmp_path: Path,
) -> None:
    export = Export(
        events=[_range(5, 9, "done"), {**_range(10, 0, "open"), "end": None}],
        calls=[_call(6, 1), _call(20, 2), _call(400, 3)],
        kernels=[_kernel(500, 1), _kernel(520, 2), _kernel(540, 3)],
        strings={1: "k", 2: "k()"},
    ).write(tmp_path / "e.sqlite")
    summary, rows = _ingest(export, tmp_path / "d")
    assert {row["correlation_id"]: row["range_text"] for row in rows} == {
        1: "done",
        2: "open",
        3: "open",
    }
    assert (summary.attributed, summary.no_range) == (3, 0)
    ranges = pq.read_table(tmp_path / "d/ranges/p.parquet").to_pylist()
    open_range = next(row for row in ranges if row["text"] == "open")
    assert (open_range["start_ns"], open_range["end_ns"]) == (10, None)
    assert (open_range["duration_ns"], open_range["self_ns"]) == (None, None)
    assert open_range["api_calls"] == 2


def test_equal_correlation_ids_of_two_processes_are_kept_apart(tmp_path: Path) -> None:
    other = thread(2, 9)
    export = Export(
        kernels=[_kernel(100, 1), _kernel(100, 1, globalPid=thread(2, 0))],
        calls=[_call(10, 1), _call(10, 1, other)],
        events=[_range(0, 50, "first"), _range(0, 50, "second", globalTid=other)],
    )
    _, rows = _ingest(export.write(tmp_path / "e.sqlite"), tmp_path)
    owners = {row["global_pid"]: row["range_text"] for row in rows}
    assert owners == {PID: "first", thread(2, 0): "second"}


def test_a_graph_launch_is_charged_once(tmp_path: Path) -> None:
    export = Export(
        kernels=[_kernel(100 + i, 1, graphId=4, graphNodeId=i) for i in range(3)],
        calls=[_call(10, 1)],
        events=[_range(0, 50, "graph")],
    )
    summary, rows = _ingest(export.write(tmp_path / "e.sqlite", "3.25"), tmp_path)
    assert summary.attributed == 3
    assert {(row["graph_id"], row["launch_start_ns"]) for row in rows} == {(4, 10)}
    assert sorted(row["graph_node_id"] for row in rows) == [0, 1, 2]
    (owner,) = pq.read_table(tmp_path / "ranges/p.parquet").to_pylist()
    assert (owner["api_calls"], owner["api_ns"]) == (1, 5)


def test_a_costprof_range_goes_before_an_inner_one_of_another_domain(tmp_path: Path) -> None:
    export = Export(
        kernels=[_kernel(100, 1)],
        calls=[_call(20, 1)],
        events=[
            {
                "start": 0,
                "eventType": 75,
                "globalTid": TID,
                "domainId": 3,
                "text": "costprof",
            },
            _range(5, 50, "ab12:7", domainId=3),
            _range(10, 40, "aten::mm"),
        ],
    )
    _, rows = _ingest(export.write(tmp_path / "e.sqlite"), tmp_path)
    assert (rows[0]["range_text"], rows[0]["range_domain"]) == ("ab12:7", "costprof")
    ranges = pq.read_table(tmp_path / "ranges/p.parquet").to_pylist()
    named = {(row["text"], row["scenario_id"], row["repetition"]) for row in ranges}
    assert named == {("ab12:7", "ab12", 7), ("aten::mm", None, None)}


def test_the_end_of_a_range_is_no_longer_in_it(tmp_path: Path) -> None:
    export = Export(
        kernels=[_kernel(100, 1), _kernel(200, 2), _kernel(300, 3)],
        calls=[_call(10, 1), _call(20, 2), _call(30, 3)],
        events=[_range(10, 20, "a"), _range(20, 30, "b")],
    )
    _, rows = _ingest(export.write(tmp_path / "e.sqlite"), tmp_path)
    owners = {row["correlation_id"]: row["range_text"] for row in rows}
    assert owners == {1: "a", 2: "b", 3: None}
