"""nsys, ncu and the permission to count, by scripts and files that behave like them."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import pytest
from nsys_exports import Export

from costprof.profiler.doctor.check import Check
from costprof.profiler.doctor.counters import ncu_check, permission_check
from costprof.profiler.doctor.nsight import NSYS, ROUND_TRIP, nsys_checks
from costprof.profiler.nsys import tool

MakeTool = Callable[[str, str], Path]
NVTX = importlib.metadata.version("nvtx")
# Runs the program it is given; its export is a file prepared by the test.
FAKE_NSYS = """
import pathlib, shutil, subprocess, sys

def output():
    (found,) = [a.removeprefix("--output=") for a in sys.argv if a.startswith("--output=")]
    return pathlib.Path(found)

if sys.argv[1] == "--version":
    print("NVIDIA Nsight Systems version 2023.4.1.97-1")
elif sys.argv[1] == "profile":
    {profile}
elif sys.argv[1] == "export":
    shutil.copy({export!r}, output())
"""
RECORDS = """program = [a for a in sys.argv[2:] if not a.startswith("--")]
    at = sys.argv.index(program[0])
    subprocess.run(sys.argv[at:], check=True)
    output().with_suffix(".nsys-rep").write_bytes(b"report")"""


@pytest.fixture(autouse=True)
def _only_path_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "_OTHER_PLACES", ())


def nsys(make_tool: MakeTool, tmp_path: Path, profile: str, export: Export) -> dict[str, Check]:
    path = export.write(tmp_path / "prepared.sqlite")
    make_tool("nsys", FAKE_NSYS.format(profile=profile, export=str(path)))
    return {check.name: check for check in nsys_checks()}


def a_range(text: str) -> Export:
    domain = {"eventType": 75, "start": 1, "domainId": 1, "globalTid": 1 << 24, "text": "costprof"}
    event = {
        "eventType": 59,
        "start": 10,
        "end": 20,
        "text": text,
        "domainId": 1,
        "globalTid": 1 << 24,
    }
    return Export(events=[domain, event])


@pytest.mark.usefixtures("only_path")
def test_no_nsys() -> None:
    found = {check.name: check for check in nsys_checks()}
    assert found[NSYS].status == found[ROUND_TRIP].status == "missing"
    assert "--backend nsys is refused" in found[NSYS].consequence
    assert "install" in found[NSYS].way_out
    assert found[ROUND_TRIP].way_out == "see 'nsys'"


def test_a_range_that_comes_back(make_tool: MakeTool, tmp_path: Path) -> None:
    found = nsys(make_tool, tmp_path, RECORDS, a_range("round-trip"))
    assert [check.status for check in found.values()] == ["ok", "ok"]
    assert (
        found[ROUND_TRIP].found
        == f"a range of Python's nvtx {NVTX} came back from nsys 2023.4.1.97"
    )


@pytest.mark.parametrize("export", [Export(events=[a_range("").events[0]]), a_range("another")])
def test_an_nsys_that_loses_the_range(make_tool: MakeTool, tmp_path: Path, export: Export) -> None:
    found = nsys(make_tool, tmp_path, RECORDS, export)
    assert found[NSYS].status == "ok"
    lost = found[ROUND_TRIP]
    assert lost.status == "missing"
    assert lost.found == f"nsys 2023.4.1.97 records no range of Python's nvtx {NVTX}"
    assert lost.way_out == "pip install 'nvtx<0.2.12', or install a newer nsys"


def test_an_nsys_that_leaves_no_report(make_tool: MakeTool, tmp_path: Path) -> None:
    lost = nsys(make_tool, tmp_path, "pass", Export())[ROUND_TRIP]
    assert lost.status == "missing"
    assert "left no probe.nsys-rep" in lost.found


def test_an_nsys_without_its_importer(make_tool: MakeTool, tmp_path: Path) -> None:
    says = 'print("The importer binary and its dependencies were not found")'
    lost = nsys(make_tool, tmp_path, says, Export())[ROUND_TRIP]
    assert lost.status == "missing"
    assert "does not find its importer" in lost.found
    assert "ln -sfn" in lost.way_out


def test_an_nsys_that_does_not_run(make_tool: MakeTool) -> None:
    make_tool("nsys", "raise SystemExit(1)")
    assert [check.status for check in nsys_checks()] == ["missing", "missing"]


@pytest.mark.nsys
def test_the_real_nsys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    if tool.find_nsys() is None:
        pytest.skip("nsys is not installed")
    assert [check.status for check in nsys_checks()] == ["ok", "ok"]


@pytest.mark.usefixtures("only_path")
def test_no_ncu() -> None:
    found = ncu_check()
    assert (found.status, found.found) == ("missing", "not on PATH")
    assert "timings do not need them" in found.consequence


def test_an_ncu(make_tool: MakeTool) -> None:
    path = make_tool("ncu", 'print("NVIDIA Nsight Compute\\nVersion 2022.3.0.0 (build 31729285)")')
    found = ncu_check()
    assert (found.status, found.found) == ("ok", f"2022.3.0.0 at {path}")


def test_an_ncu_that_does_not_run(make_tool: MakeTool, only_path: Path) -> None:
    make_tool("ncu", 'import sys; sys.exit("a library is missing")')
    found = ncu_check()
    assert found.status == "missing"
    assert found.found.endswith("ncu --version says: a library is missing")
    (only_path / "ncu").write_text("#!/no/such/interpreter\n")
    assert "cannot be started" in ncu_check().found


ADMIN, USER = "CapEff:\t000001ffffffffff\n", "CapEff:\t00000000a80425fb\n"


@pytest.mark.parametrize(
    ("params", "capabilities", "status", "found"),
    [
        ("RmProfilingAdminOnly: 0\n", USER, "ok", "open to all users"),
        ("X: 1\nRmProfilingAdminOnly: 1\n", ADMIN, "ok", "and this process is one"),
        ("RmProfilingAdminOnly: 1\n", USER, "degraded", "and this process is none"),
        ("Other: 0\n", USER, "degraded", "RmProfilingAdminOnly is not stated"),
        ("RmProfilingAdminOnly: 1\n", "nothing", "degraded", "and this process is none"),
    ],
)
def test_permission(
    tmp_path: Path, params: str, capabilities: str, status: str, found: str
) -> None:
    (tmp_path / "params").write_text(params)
    (tmp_path / "status").write_text(capabilities)
    check = permission_check(tmp_path / "params", tmp_path / "status")
    assert check.status == status
    assert found in check.found
    assert ("NVreg_RestrictProfilingToAdminUsers=0" in check.way_out) == (status != "ok")


def test_permission_without_a_driver(tmp_path: Path) -> None:
    check = permission_check(tmp_path / "absent", tmp_path / "absent")
    assert (check.status, check.found) == ("missing", "no NVIDIA driver is loaded")


def test_permission_that_cannot_be_read(tmp_path: Path) -> None:
    check = permission_check(tmp_path, tmp_path)
    assert check.status == "degraded"
    assert "cannot be read" in check.found
