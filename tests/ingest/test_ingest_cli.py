"""The verb `costprof ingest`, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from nsys_exports import Export, thread

KERNEL = {"start": 1, "end": 2, "globalPid": thread(1, 0), "correlationId": 1}


def _costprof(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "costprof.cli.main", *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_refused_exports_exit_with_their_diagnosis_and_leave_nothing(
    nsys_data: Path, tmp_path: Path
) -> None:
    for name, words in (
        ("no_cuda_driver_mismatch_nsys2024.6_schema3.16.sqlite", "driver version (13.1) is not"),
        ("nvtx_but_no_kernels_nsys2025.1_schema3.17.sqlite", "12 CUDA calls, 6 NVTX events"),
    ):
        done = _costprof("ingest", nsys_data / name, "--out", tmp_path / "d")
        assert done.returncode == 4
        lines = done.stderr.strip().splitlines()
        assert lines[-1].startswith(f"costprof: {name} holds no kernels")
        assert words in lines[-1]
        assert done.stdout == ""
        assert not (tmp_path / "d").exists()


def test_one_refusal_does_not_stop_the_others(tmp_path: Path) -> None:
    good = Export(kernels=[KERNEL]).write(tmp_path / "good.sqlite")
    bad = tmp_path / "bad.sqlite"
    bad.write_text("text", encoding="utf-8")
    done = _costprof("ingest", bad, good, "--out", tmp_path / "d", "--json")
    assert done.returncode == 4
    report = json.loads(done.stdout)
    assert [entry["source"] for entry in report["ingested"]] == ["good.sqlite"]
    assert report["ingested"][0]["no_launch_row"] == 1
    assert report["refused"][0]["file"] == "bad.sqlite"
    assert len(list((tmp_path / "d/kernels").glob("*.parquet"))) == 1


def test_the_summary_counts_what_is_unattributed(tmp_path: Path) -> None:
    path = Export(kernels=[KERNEL, KERNEL]).write(tmp_path / "e.sqlite")
    done = _costprof("ingest", path, "--out", tmp_path / "d")
    assert done.returncode == 0
    assert done.stdout == (
        "e.sqlite: 2 kernels, 0 attributed to ranges, 2 unattributed (2 without a launch row); "
        "0 ranges, 0 of them costprof's\n"
    )
