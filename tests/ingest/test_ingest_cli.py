"""The verb `costprof ingest`, in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from command_line import run_apart
from nsys_exports import Export, thread

KERNEL = {"start": 1, "end": 2, "globalPid": thread(1, 0), "correlationId": 1}


def test_refused_exports_exit_with_their_diagnosis_and_leave_nothing(
    nsys_data: Path, tmp_path: Path
) -> None:
    for name, words in (
        ("no_cuda_driver_mismatch_nsys2024.6_schema3.16.sqlite", "driver version (13.1) is not"),
        ("nvtx_but_no_kernels_nsys2025.1_schema3.17.sqlite", "12 CUDA calls, 6 NVTX events"),
    ):
        done = run_apart("ingest", nsys_data / name, "--out", tmp_path / "d")
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
    done = run_apart("ingest", bad, good, "--out", tmp_path / "d", "--json")
    assert done.returncode == 4
    report = json.loads(done.stdout)
    assert [entry["source"] for entry in report["ingested"]] == ["good.sqlite"]
    assert report["ingested"][0]["no_launch_row"] == 1
    assert report["refused"][0]["file"] == "bad.sqlite"
    assert len(list((tmp_path / "d/kernels").glob("*.parquet"))) == 1


def test_the_summary_counts_what_is_unattributed(tmp_path: Path) -> None:
    path = Export(kernels=[KERNEL, KERNEL]).write(tmp_path / "e.sqlite")
    done = run_apart("ingest", path, "--out", tmp_path / "d")
    assert done.returncode == 0
    assert done.stdout == (
        "e.sqlite: 2 kernels, 0 attributed to ranges, 2 unattributed (2 without a launch row); "
        "0 ranges, 0 of them costprof's\n"
    )


def test_public_measurements_beside_a_file_of_another_kind(tmp_path: Path) -> None:
    row = {
        **{"framework": "VLLM", "version": "0.22.0", "device": "GPU", "op_name": "moe"},
        **{"kernel_source": "k", "moe_dtype": "fp8", "num_tokens": 4, "hidden_size": 64},
        **{"inter_size": 64, "topk": 2, "num_experts": 8, "moe_tp_size": 1, "moe_ep_size": 1},
        **{"distribution": "balanced", "latency": 0.1, "power": 90.0},
    }
    rows = [row, row | {"latency": 0.3}, row | {"latency": -1.0}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "moe.parquet")
    pq.write_table(pa.table({"op_name": ["gemm"]}), tmp_path / "gemm.parquet")
    public = ("--format", "aiconfigurator", "--out", tmp_path / "d")
    done = run_apart("ingest", tmp_path / "gemm.parquet", tmp_path / "moe.parquet", *public)
    assert done.returncode == 4
    assert done.stdout == (
        "moe.parquet: 1 measurements of 1 classes, GPU, vllm 0.22.0; 1 with energy, "
        "0 of it trusted; 1 repeat another, the median kept; 1 skipped "
        "(1 latency is missing, not finite or not positive)\n"
    )
    assert done.stderr.strip().splitlines()[-1] == (
        "costprof: gemm.parquet holds measurements of gemm, not of MoE layers; "
        "nothing was ingested; give a file whose op_name is moe"
    )
    shown = run_apart("inspect", tmp_path / "d")
    assert "GPU by aiconfigurator (cuda_graph); energy power_samples" in shown.stdout
    again = run_apart("ingest", tmp_path / "moe.parquet", *public, "--json")
    (summary,) = json.loads(again.stdout)["ingested"]
    assert (summary["rows"], summary["measurements"], summary["repeated"]) == (3, 1, 1)


def test_a_format_and_a_meter_exclude_each_other(tmp_path: Path) -> None:
    done = run_apart("ingest", "m.csv", "--meter", "--format", "aiconfigurator", "--out", tmp_path)
    assert done.returncode == 2
    assert "--meter and --format aiconfigurator are both given" in done.stderr
