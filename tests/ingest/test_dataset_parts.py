"""What ingest leaves in a dataset: whole parts, once, and nothing private."""

from __future__ import annotations

import re
import shutil
import sqlite3
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from nsys_exports import Export, thread

from costprof.core.errors import DatasetError, ExportError, InputError, ToolError
from costprof.profiler.ingest import ingest_export, ingest_file
from costprof.profiler.schema import KERNELS, RANGES
from costprof.profiler.times import scenario_times

TID, PID = thread(1, 1), thread(1, 0)


def _kernel(start: int, correlation: int = 1) -> dict[str, int]:
    return {
        "start": start,
        "end": start + 10,
        "globalPid": PID,
        "correlationId": correlation,
        "shortName": 1,
        "demangledName": 1,
    }


def _sweep_export(with_kernels: bool) -> Export:
    """Two calls of one scenario and one of another; the second call launches two kernels."""
    texts = [("abc:0", 0), ("abc:1", 100), ("xyz:0", 200)]
    events = [
        {"start": 0, "eventType": 75, "globalTid": TID, "domainId": 1, "text": "costprof"}
    ] + [
        {
            "start": at,
            "end": at + 50,
            "eventType": 59,
            "globalTid": TID,
            "domainId": 1,
            "text": text,
        }
        for text, at in texts
    ]
    calls = [(10, 1), (110, 2), (120, 3)]
    return Export(
        kernels=[_kernel(500, 1), _kernel(600, 2), _kernel(630, 3)] if with_kernels else [],
        calls=[
            {"start": at, "end": at + 5, "globalTid": TID, "correlationId": correlation}
            for at, correlation in calls
        ],
        events=events,
        strings={1: "gemm"},
    )


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_ingesting_again_replaces(tmp_path: Path) -> None:
    path = _sweep_export(True).write(tmp_path / "e.sqlite")
    first = ingest_file(path, tmp_path / "d")
    files = _files(tmp_path / "d")
    assert ingest_file(path, tmp_path / "d") == first
    assert _files(tmp_path / "d") == files
    pattern = str(tmp_path / "d/kernels/*.parquet")
    assert duckdb.sql(f"SELECT count(*) FROM '{pattern}'").fetchone() == (3,)


def test_another_file_of_the_same_name_needs_force(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    old = _sweep_export(True).write(tmp_path / "a/e.sqlite")
    new = _sweep_export(False).write(tmp_path / "b/e.sqlite")
    ingest_file(old, tmp_path / "d")
    before = _files(tmp_path / "d")
    with pytest.raises(InputError, match=r"already holds another file called e\.sqlite .*--force"):
        ingest_file(new, tmp_path / "d")
    assert _files(tmp_path / "d") == before
    summary = ingest_file(new, tmp_path / "d", force=True)
    # The new file has no kernels: those of the old one must not stay behind.
    assert _files(tmp_path / "d") == [f"ranges/{summary.part}.parquet"]


def test_a_failure_half_way_leaves_the_old_part(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    ingest_file(_sweep_export(True).write(tmp_path / "e.sqlite"), tmp_path / "d")
    before = {name: (tmp_path / "d" / name).read_bytes() for name in _files(tmp_path / "d")}
    export = _sweep_export(True)
    # Staging passes; the copy meets the last row when it has written most of the file.
    export.kernels = [_kernel(i) for i in range(70_000)] + [{**_kernel(0), "end": "late"}]
    with pytest.raises(ExportError, match=r"e\.sqlite is damaged"):
        ingest_file(export.write(tmp_path / "bad/e.sqlite"), tmp_path / "d", force=True)
    after = {name: (tmp_path / "d" / name).read_bytes() for name in _files(tmp_path / "d")}
    assert after == before


def test_memory_that_does_not_do_is_named(tmp_path: Path) -> None:
    path = _sweep_export(True).write(tmp_path / "e.sqlite")
    with pytest.raises(ToolError, match="DuckDB needs more than its 1 MB or the disk for e"):
        ingest_export(path, tmp_path / "d", part="p", source="e", memory_limit_mb=1)
    assert not (tmp_path / "d").exists()


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    path = _sweep_export(True).write(tmp_path / "e.sqlite")
    blocker = tmp_path / "file"
    blocker.touch()
    with pytest.raises(InputError, match="cannot be written"):
        ingest_file(path, blocker / "d")


@pytest.mark.parametrize("with_kernels", [True, False], ids=["gpu", "cpu"])
def test_times_of_a_sweep(tmp_path: Path, with_kernels: bool) -> None:
    path = _sweep_export(with_kernels).write(tmp_path / "e.sqlite")
    ingest_export(path, tmp_path / "d", part="run-1", source="run-1")
    rows = scenario_times(tmp_path / "d", ["run-1"]).to_pylist()
    assert [(r["scenario_id"], r["repetition"], r["duration_ns"]) for r in rows] == [
        ("abc", 0, 50),
        ("abc", 1, 50),
        ("xyz", 0, 50),
    ]
    kernels = [(r["kernels"], r["kernel_sum_ns"], r["kernel_span_ns"]) for r in rows]
    if with_kernels:
        assert kernels == [(1, 10, 10), (2, 20, 40), (0, 0, None)]
    else:
        assert kernels == [(0, 0, None)] * 3


def test_times_of_two_runs_are_kept_apart(tmp_path: Path) -> None:
    for part, with_kernels in (("run-1", True), ("run-2", False)):
        path = _sweep_export(with_kernels).write(tmp_path / f"{part}.sqlite")
        ingest_export(path, tmp_path / "d", part=part, source=part)
    rows = scenario_times(tmp_path / "d").to_pylist()
    assert [(r["source"], r["kernels"]) for r in rows if r["scenario_id"] == "abc"] == [
        ("run-1", 1),
        ("run-1", 2),
        ("run-2", 0),
        ("run-2", 0),
    ]
    with pytest.raises(DatasetError, match="lacks ranges of run-3"):
        scenario_times(tmp_path / "d", ["run-3"])


SECRETS = {
    "TARGET_INFO_SYSTEM_ENV": [
        ("Local", "Hostname", "secret-host-41"),
        ("e", "v", "TOKEN=hunter2"),
    ],
    "PROCESSES": [("/home/secretuser/run.py --key s3cr3t",)],
    "META_DATA_CAPTURE": [("PROCESS_COMMAND_LINE", "/opt/secretdir/python")],
    "ThreadNames": [("secret-thread",)],
    "EXPORT_META_DATA_USER": [("EXPORT_USER", "secretuser")],
}


def test_planted_secrets_do_not_reach_the_dataset(tmp_path: Path) -> None:
    export = _sweep_export(True)
    export.secrets = SECRETS
    export.strings[5] = "/home/secretuser/libsecret.so"
    folder = tmp_path / "secretpath"
    folder.mkdir()
    ingest_file(export.write(folder / "e.sqlite"), tmp_path / "d")
    content = _everything(tmp_path / "d")
    for pattern in (b"secret", b"hunter2", b"s3cr3t", b"TOKEN"):
        assert pattern not in content
    assert b"gemm" in content


@pytest.mark.parametrize(
    "name",
    [
        "a100_cloverleaf_nsys2024.5_schema3.13.sqlite",
        "a100_mpi_saxpy_nsys2022.2_schema2.9.sqlite",
        "h100_two_gpus_windowed_nsys2026.2_schema3.25.sqlite",
    ],
)
def test_no_private_string_of_a_real_export_reaches_the_dataset(
    nsys_data: Path, tmp_path: Path, name: str
) -> None:
    copy = tmp_path / "e.sqlite"
    shutil.copyfile(nsys_data / name, copy)
    ingest_file(copy, tmp_path / "d")
    content = _everything(tmp_path / "d")
    public, private = _strings(copy)
    columns = " ".join([*KERNELS.names, *RANGES.names, "push_pop", "no_launch_row", "DuckDB"])
    allowed = b"\n".join(sorted(public)) + columns.encode()
    checked = {text for text in private if text not in allowed}
    assert len(checked) > 200
    assert {text for text in checked if text in content} == set()


def _everything(folder: Path) -> bytes:
    """Raw bytes of all parts, and every text value in them once decoded."""
    parts = []
    for path in folder.rglob("*.parquet"):
        parts.append(path.read_bytes())
        columns = pq.read_table(path).to_pydict()
        texts = {str(value) for values in columns.values() for value in values}
        parts.append("\n".join(sorted(texts)).encode())
        parts.append(repr(pq.read_metadata(path).metadata).encode())
    return b"\n".join(parts)


def _strings(path: Path) -> tuple[set[bytes], set[bytes]]:
    """Names of kernels and texts of NVTX events; and every other string of the export."""
    connection = sqlite3.connect(path)
    tables = [t for (t,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")]
    wanted = {
        "CUPTI_ACTIVITY_KIND_KERNEL": ("demangledName", "shortName"),
        "NVTX_EVENTS": ("textId",),
    }
    ids = set()
    for table, columns in wanted.items():
        for column in columns if table in tables else ():
            ids |= {row[0] for row in connection.execute(f"SELECT {column} FROM {table}")}
    public, private = set(), set()
    for table in tables:
        for row in connection.execute(f'SELECT * FROM "{table}"'):
            named = table == "StringIds" and row[0] in ids
            for value in row:
                if isinstance(value, str) and re.search(r"[A-Za-z]", value) and len(value) >= 6:
                    (public if named or table == "NVTX_EVENTS" else private).add(value.encode())
    connection.close()
    return public, private
