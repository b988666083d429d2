"""Telling a usable export from a broken one, and making one from a report."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from nsys_exports import Export, thread

from costprof.core.errors import ExportError, InputError
from costprof.profiler.ingest import ingest_file
from costprof.profiler.nsys.export import check_export, costprof_range_texts
from costprof.profiler.times import scenario_times

KERNEL = {"start": 1, "end": 2, "globalPid": thread(1, 0), "correlationId": 1}
RANGE = {"start": 1, "end": 2, "eventType": 59, "globalTid": thread(1, 1), "text": "x"}


def _refused(path: Path, tmp_path: Path, message: str, kind: type[Exception] = ExportError) -> None:
    out = tmp_path / "out"
    with pytest.raises(kind, match=message) as caught:
        ingest_file(path, out)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_a_text_file_is_not_sqlite(tmp_path: Path) -> None:
    path = tmp_path / "notes.sqlite"
    path.write_text("hello", encoding="utf-8")
    _refused(path, tmp_path, r"notes\.sqlite is not a SQLite file; nothing was ingested; give a")


def test_an_empty_file_is_not_sqlite(tmp_path: Path) -> None:
    path = tmp_path / "empty.sqlite"
    path.touch()
    _refused(path, tmp_path, "is not a SQLite file")


@pytest.mark.parametrize("keep", [60, 200_000])
def test_a_truncated_export_is_damaged(nsys_data: Path, tmp_path: Path, keep: int) -> None:
    whole = nsys_data / "a100_mpi_saxpy_nsys2022.2_schema2.9.sqlite"
    path = tmp_path / "cut.sqlite"
    path.write_bytes(whole.read_bytes()[:keep])
    _refused(path, tmp_path, r"cut\.sqlite is damaged \(.*\); nothing was ingested; export")


def test_an_export_with_overwritten_pages_is_damaged(nsys_data: Path, tmp_path: Path) -> None:
    content = bytearray(
        (nsys_data / "h100_two_gpus_windowed_nsys2026.2_schema3.25.sqlite").read_bytes()
    )
    path = tmp_path / "torn.sqlite"
    for offset in range(40_960, len(content) - 4096, 4096):
        content[offset : offset + 512] = b"\xff" * 512
    path.write_bytes(content)
    _refused(path, tmp_path, r"torn\.sqlite is damaged")


def test_another_sqlite_file_is_not_an_export(tmp_path: Path) -> None:
    path = tmp_path / "shop.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE orders (id INTEGER)")
    connection.commit()
    connection.close()
    _refused(path, tmp_path, r"shop\.sqlite is a SQLite file without nsys metadata")


def test_a_kernel_table_without_times_is_refused(tmp_path: Path) -> None:
    path = Export(kernels=[KERNEL]).write(tmp_path / "e.sqlite")
    connection = sqlite3.connect(path)
    connection.execute('ALTER TABLE CUPTI_ACTIVITY_KIND_KERNEL RENAME COLUMN "end" TO stop')
    connection.commit()
    connection.close()
    _refused(path, tmp_path, "has a table CUPTI_ACTIVITY_KIND_KERNEL without end")


def test_text_where_a_number_belongs_is_damage(tmp_path: Path) -> None:
    path = Export(kernels=[{**KERNEL, "start": "soon"}]).write(tmp_path / "e.sqlite")
    _refused(path, tmp_path, r"e\.sqlite is damaged")


@pytest.mark.parametrize(
    ("name", "diagnosis"),
    [
        (
            "no_cuda_driver_mismatch_nsys2024.6_schema3.16.sqlite",
            r"\(0 CUDA calls, 0 NVTX events\); nsys noted: Installed CUDA driver version \(13\.1\) "
            r"is not supported by this build of Nsight Systems.*No CUDA events collected",
        ),
        (
            "nvtx_but_no_kernels_nsys2025.1_schema3.17.sqlite",
            r"\(12 CUDA calls, 6 NVTX events\); nsys noted: CUDA device 0: Unified Memory cannot",
        ),
    ],
)
def test_an_empty_capture_says_why(
    nsys_data: Path, tmp_path: Path, name: str, diagnosis: str
) -> None:
    _refused(nsys_data / name, tmp_path, f"holds no kernels and no costprof ranges {diagnosis}")


def test_an_empty_capture_of_an_old_version_has_no_diagnosis(tmp_path: Path) -> None:
    path = Export(events=[RANGE]).write(tmp_path / "e.sqlite", "2.9")
    _refused(path, tmp_path, r"\(0 CUDA calls, 1 NVTX events\); nsys noted: nothing;")


def test_the_diagnosis_leaves_out_what_is_beside_the_point(tmp_path: Path) -> None:
    export = Export(
        diagnostics=[
            (2, "Unable to collect CPU kernel IP samples.\nperf event paranoid level is 2."),
            (1, "CUDA injection initialized successfully."),
            (2, "No CUDA events collected. Does the process use CUDA?"),
            (3, "CUPTI_ERROR_INVALID_DEVICE"),
            (2, "The driver is too new\nfor this build."),
        ]
    )
    _refused(
        export.write(tmp_path / "e.sqlite"),
        tmp_path,
        r"noted: The driver is too new for this build \| CUPTI_ERROR_INVALID_DEVICE \| No CUDA "
        r"events collected\. Does the process use CUDA\?;",
    )


def test_marks_and_unfinished_ranges_are_not_content(tmp_path: Path) -> None:
    create = {**RANGE, "eventType": 75, "end": None, "text": "costprof", "domainId": 1}
    mark = {**RANGE, "eventType": 34, "end": None, "domainId": 1}
    unfinished = {**RANGE, "end": None, "domainId": 1}
    path = Export(events=[create, mark, unfinished]).write(tmp_path / "e.sqlite")
    _refused(path, tmp_path, "holds no kernels and no costprof ranges")


def test_costprof_texts_are_found_inline_and_by_id(tmp_path: Path) -> None:
    events = [
        {**RANGE, "eventType": 75, "end": None, "textId": 9, "text": None, "domainId": 1},
        {**RANGE, "start": 5, "end": 6, "text": None, "textId": 8, "domainId": 1},
        {**RANGE, "start": 3, "end": 4, "text": "first:0", "domainId": 1},
        {**RANGE, "text": "elsewhere", "domainId": 0},
    ]
    path = Export(events=events, strings={8: "second:0", 9: "costprof"}).write(
        tmp_path / "e.sqlite"
    )
    assert costprof_range_texts(path) == ["first:0", "second:0"]


def test_versions_are_read_from_either_metadata_table(tmp_path: Path) -> None:
    for schema in ("2.9", "3.25"):
        info = check_export(Export().write(tmp_path / f"{schema}.sqlite", schema))
        assert (info.product_version, info.schema_version) == ("9.9.9", schema)


@pytest.mark.parametrize(
    "name", ["it's.sqlite", 'a "b" %41#?.sqlite', "名前 ; --.sqlite", ".h.sqlite"]
)
def test_any_file_name_is_taken(tmp_path: Path, name: str) -> None:
    events = [
        {**RANGE, "eventType": 75, "end": None, "text": "costprof", "domainId": 1},
        {**RANGE, "text": "ab:0", "domainId": 1},
    ]
    path = Export(kernels=[KERNEL], events=events).write(tmp_path / name)
    out = tmp_path / "out's %d [1]*?"
    summary = ingest_file(path, out)
    assert (summary.kernels, summary.source) == (1, name)
    assert len(list((out / "kernels").glob("[!.]*.parquet"))) == 1
    assert scenario_times(out)["source"].to_pylist() == [name]


def test_a_missing_file_and_an_unknown_suffix_are_named(tmp_path: Path) -> None:
    _refused(tmp_path / "no.sqlite", tmp_path, r"no\.sqlite is not a file", InputError)
    other = tmp_path / "report.pdf"
    other.touch()
    _refused(other, tmp_path, r"report\.pdf has a suffix costprof does not know", InputError)
