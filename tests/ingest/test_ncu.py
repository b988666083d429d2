"""Counters of ncu: the CSV raw page, the report, and that the two agree."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from costprof.core.errors import ExportError, ToolError
from costprof.profiler.ingest import ingest_file
from costprof.profiler.ncu import read_raw_page, read_report
from costprof.profiler.ncu_units import base_unit
from costprof.profiler.schema import COUNTERS

PAGE = """==PROF== Connected to process 77 (/home/secretuser/app)
==PROF== Profiling "gemm": 0%....100% - 1 pass
"ID","Process ID","Process Name","Host Name","Kernel Name","gpu__time_duration.sum",\
"dram__bytes_read.sum","launch__func_cache_config","sm__warps_active.avg"
"","","","","","usecond","Mbyte","","%"
"0","77","secretapp","secrethost","gemm<int>(a, b)","1,024.5","2","CacheNone",""
"1","77","secretapp","secrethost","relu","3.5","n/a","CacheNone","61.5"
"""


def test_a_raw_page_in_base_units(tmp_path: Path) -> None:
    path = tmp_path / "page.csv"
    path.write_text(PAGE, encoding="utf-8")
    assert list(read_raw_page(path)) == [
        (0, "gemm<int>(a, b)", "gpu__time_duration.sum", "ns", 1_024_500.0),
        (0, "gemm<int>(a, b)", "dram__bytes_read.sum", "byte", 2e6),
        (1, "relu", "gpu__time_duration.sum", "ns", 3500.0),
        (1, "relu", "sm__warps_active.avg", "%", 61.5),
    ]
    summary = ingest_file(path, tmp_path / "d")
    assert summary.counters == 4
    (part,) = (tmp_path / "d/counters").glob("*.parquet")
    table = pq.read_table(part)
    assert table.schema.equals(COUNTERS)
    assert "secret" not in repr(table.to_pylist())
    assert b"secret" not in part.read_bytes()


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("nsecond", ("ns", 1.0)),
        ("second", ("ns", 1e9)),
        ("ms", ("ns", 1e6)),
        ("Kbyte/block", ("byte/block", 1e3)),
        ("Gbyte/second", ("byte/s", 1e9)),
        ("byte/nsecond", ("byte/s", 1e9)),
        ("Tbyte/s", ("byte/s", 1e12)),
        ("cycle/usecond", ("hz", 1e6)),
        ("Ghz", ("hz", 1e9)),
        ("register/thread", ("register/thread", 1.0)),
        ("%", ("%", 1.0)),
        ("", ("", 1.0)),
        ("Mfurlong", ("Mfurlong", 1.0)),
    ],
)
def test_units(unit: str, expected: tuple[str, float]) -> None:
    name, factor = base_unit(unit)
    assert name == expected[0]
    assert factor == pytest.approx(expected[1], rel=1e-12)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "is not a raw page of ncu; nothing was ingested; make one with ncu"),
        ("", "is not a raw page of ncu"),
        (PAGE.splitlines()[2], "is not a raw page of ncu"),
        (PAGE.replace('"","","","","","usecond"', '"0","","","","","usecond"'), "no row of units"),
        (PAGE[: PAGE.rindex('"61.5"') - 1], r"cut off \(8 values for 9 columns\)"),
        ("\n".join(PAGE.splitlines()[:4]), "holds no counter of any kernel"),
        (PAGE[:-3], r"cut off \(unexpected end of data\)"),
    ],
)
def test_bad_pages_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "page.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ExportError, match=message):
        ingest_file(path, tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_page_and_report_of_one_capture_agree(ncu_data: Path) -> None:
    pytest.importorskip("ncu_report")
    page = {c[:3]: c[3:] for c in read_raw_page(ncu_data / "a10g_raw_page.csv")}
    report = {c[:3]: c[3:] for c in read_report(ncu_data / "a10g_profile.ncu-rep")}
    assert len(page) == 1208
    assert page.keys() == report.keys()
    for key, (unit, value) in report.items():
        # The page prints six decimals of the scaled value.
        scale = 1e9 if page[key][0] in ("hz", "byte/s", "byte") else 1e3
        assert page[key][1] == pytest.approx(value, rel=1e-6, abs=scale * 1e-6), key
        # The report leaves out the unit of peak rates, the page that of passes.
        if unit and page[key][0]:
            assert page[key][0] == unit, key


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"r\.ncu-rep cannot be read as an ncu report \(it does not begin as one\)"),
        (b"not a report", r"r\.ncu-rep cannot be read as an ncu report"),
        (b"NVR\0" + b"\xff" * 500, r"r\.ncu-rep holds no counter.*whether the file is whole"),
    ],
)
def test_a_report_that_is_none_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    pytest.importorskip("ncu_report")
    path = tmp_path / "r.ncu-rep"
    path.write_bytes(content)
    with pytest.raises(ExportError, match=message):
        ingest_file(path, tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_without_the_package_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ncu_report", None)
    path = tmp_path / "r.ncu-rep"
    path.touch()
    with pytest.raises(ToolError, match=r"pip install 'costprof\[ncu\]'"):
        ingest_file(path, tmp_path / "d")
