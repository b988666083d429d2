"""A script under the real nsys, through export and ingest, to the times of its calls."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from costprof.core.errors import ExportError
from costprof.profiler.ingest import ingest_file
from costprof.profiler.nsys.export import costprof_range_texts, export_report
from costprof.profiler.nsys.tool import (
    NsysTool,
    check_profile,
    find_nsys,
    profile_command,
    scratch_environment,
)
from costprof.profiler.process import end_marked_processes, run_tool
from costprof.profiler.times import scenario_times

pytestmark = pytest.mark.nsys

SCRIPT = """
import time
import nvtx

for repetition in range(3):
    with nvtx.annotate(f"beef01:{repetition}", domain="costprof"):
        time.sleep(0.02)
with nvtx.annotate("outside"):
    pass
"""


@pytest.fixture(scope="module")
def tool() -> NsysTool:
    found = find_nsys()
    if found is None:
        pytest.skip("nsys is not installed")
    return found


@pytest.fixture(scope="module")
def report(tool: NsysTool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run %d")
    script = folder / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    path = folder / "run.nsys-rep"
    with scratch_environment() as environment:
        completed = run_tool(
            profile_command(tool, folder / "run", ["nvtx"], [sys.executable, str(script)]),
            timeout_s=120,
            cwd=folder,
            env=environment,
        )
    check_profile(completed, path, timeout_s=120)
    return path


def test_ranges_come_back_with_their_times(report: Path, tmp_path: Path) -> None:
    summary = ingest_file(report, tmp_path / "d")
    assert (summary.kernels, summary.ranges, summary.costprof_ranges) == (0, 4, 3)
    rows = scenario_times(tmp_path / "d", [summary.part]).to_pylist()
    assert [(r["scenario_id"], r["repetition"]) for r in rows] == [("beef01", i) for i in range(3)]
    assert all(20e6 <= r["duration_ns"] < 10e9 for r in rows)
    assert not (tmp_path / "d/kernels").exists()


def test_the_export_is_whole_and_nothing_else_is_left(
    tool: NsysTool, report: Path, tmp_path: Path
) -> None:
    export_report(report, tmp_path / "e.sqlite", tool)
    assert [path.name for path in tmp_path.iterdir()] == ["e.sqlite"]
    assert costprof_range_texts(tmp_path / "e.sqlite") == [f"beef01:{i}" for i in range(3)]


def test_a_damaged_report_leaves_no_export(tool: NsysTool, report: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.nsys-rep"
    broken.write_bytes(report.read_bytes()[:50_000])
    with pytest.raises(ExportError, match=r"nsys \S+ cannot export broken\.nsys-rep \(code 1: "):
        export_report(broken, tmp_path / "e.sqlite", tool)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.nsys-rep"]


def test_a_time_out_leaves_no_profiler_behind(tool: NsysTool, tmp_path: Path) -> None:
    sleeper = "import time; time.sleep(120)"
    with scratch_environment() as environment:
        completed = run_tool(
            profile_command(tool, tmp_path / "run", ["nvtx"], [sys.executable, "-c", sleeper]),
            timeout_s=3,
            env=environment,
            mark=tmp_path.name,
        )
    assert completed.timed_out
    assert end_marked_processes(tmp_path.name) == 0
