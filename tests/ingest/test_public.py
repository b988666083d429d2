"""Public measurements of MoE layers: what a row becomes, what is skipped, what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from costprof.cli.main import app
from costprof.core.device import DeviceFingerprint
from costprof.core.errors import CostprofError, DatasetError, InputError
from costprof.core.expert import ExpertClass, Kernel, class_id
from costprof.profiler.dataset import read_measurements, write_measurements
from costprof.profiler.public import PublicSummary, ingest_public_file
from costprof.profiler.summary import summarise_dataset

ROW: dict[str, Any] = {
    "framework": "VLLM",
    "version": "0.22.0",
    "device": "NVIDIA H200",
    "op_name": "moe",
    "kernel_source": "fused_moe",
    "moe_dtype": "fp8_block",
    "num_tokens": 96,
    "hidden_size": 2048,
    "inter_size": 768,
    "topk": 8,
    "num_experts": 128,
    "moe_tp_size": 2,
    "moe_ep_size": 4,
    "distribution": "power_law_1.2",
    "latency": 0.5,
    "power": 400.0,
    "power_limit": 700.0,
}


def public_file(path: Path, *rows: dict[str, Any], without: tuple[str, ...] = ()) -> Path:
    """Write `rows`, each `ROW` but for what it says, less the columns `without`."""
    every = [{k: v for k, v in (ROW | row).items() if k not in without} for row in rows]
    pq.write_table(pa.Table.from_pylist(every), path)
    return path


def ingested(folder: Path, *rows: dict[str, Any]) -> tuple[PublicSummary, list[dict[str, Any]]]:
    summary = ingest_public_file(public_file(folder / "m.parquet", *rows), folder / "d")
    return summary, read_measurements(folder / "d").to_pylist()


def refusal(path: Path, out: Path) -> str:
    with pytest.raises(CostprofError) as caught:
        ingest_public_file(path, out)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    return str(caught.value)


def test_a_row_becomes_a_layer_of_one_rank(tmp_path: Path) -> None:
    summary, (row,) = ingested(tmp_path, {})
    assert (summary.rows, summary.measurements, summary.classes) == (1, 1, 1)
    expert = ExpertClass(d_model=2048, d_ff=384, quantisation="fp8_block")
    kernel = Kernel(name="vllm:fused_moe", framework="vllm 0.22.0")
    assert {name: row[name] for name in expert.to_dict()} == expert.to_dict()
    assert row["class_id"] == class_id(expert, "layer", kernel, "warm")
    assert (row["kernel"], row["framework"], row["op"]) == (kernel.name, kernel.framework, "layer")
    assert (row["kernel_source_hash"], row["config"]) == ("", "{}")
    assert (row["tokens"], row["batch_tokens"], row["counts"]) == (96, 96, None)
    assert (row["experts"], row["top_k"], row["ep_size"], row["tp_size"]) == (32, 8, 4, 2)
    assert (row["distribution"], row["cache_state"], row["status"]) == (
        "power_law_1.2",
        "warm",
        "ok",
    )
    quantiles = {row[f"latency_us_{name}"] for name in ("mean", "p05", "p25", "p50", "p75", "p95")}
    assert quantiles == {500.0}
    assert (row["n"], row["robust_cv"], row["flops"]) == (None, None, None)
    assert (row["backend"], row["timer"], row["device_kind"]) == (
        "aiconfigurator",
        "cuda_graph",
        "gpu",
    )
    device = DeviceFingerprint(kind="gpu", name="NVIDIA H200", power_limit_w=700.0)
    assert (row["device_name"], row["device_id"]) == (device.name, device.device_id)


def test_energy_is_power_times_latency_and_trusted_from_a_second_of_calls_on(
    tmp_path: Path,
) -> None:
    summary, rows = ingested(
        tmp_path,
        {"num_tokens": 1, "latency": 0.333},
        {"num_tokens": 2, "latency": 0.334},
        {"num_tokens": 3, "power": None},
        {"num_tokens": 4, "power": math.nan},
        {"num_tokens": 5, "power": 0.0},
    )
    assert (summary.with_energy, summary.energy_trusted) == (2, 1)
    by_tokens = {row["tokens"]: row for row in rows}
    assert by_tokens[1]["energy_mj"] == pytest.approx(400.0 * 0.333)
    assert [by_tokens[n]["energy_trusted"] for n in range(1, 6)] == [False, True, None, None, None]
    for tokens in (1, 2):
        row = by_tokens[tokens]
        assert row["energy_source"] == "power_samples"
        assert (row["power_mean_w"], row["power_limit_w"]) == (400.0, 700.0)
        assert (row["energy_active_mj"], row["energy_idle_mj"]) == (None, None)
    for tokens in (3, 4, 5):
        row = by_tokens[tokens]
        assert (row["energy_mj"], row["energy_source"], row["power_mean_w"]) == (None, None, None)


def test_a_file_without_power_has_latency_alone(tmp_path: Path) -> None:
    path = public_file(tmp_path / "m.parquet", {}, without=("power", "power_limit"))
    summary = ingest_public_file(path, tmp_path / "d")
    (row,) = read_measurements(tmp_path / "d").to_pylist()
    assert (summary.with_energy, summary.energy_trusted) == (0, 0)
    assert (row["energy_mj"], row["power_limit_w"], row["energy_trusted"]) == (None, None, None)
    assert (
        row["device_id"],
        row["latency_us_p50"],
    ) == (DeviceFingerprint(kind="gpu", name="NVIDIA H200").device_id, 500.0)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("bfloat16", "none"),
        ("fp8", "fp8"),
        ("fp8_block", "fp8_block"),
        ("int4_wo", "int4"),
        ("w4a16_mxfp4", "mxfp4"),
    ],
)
def test_every_format_of_weights_has_a_name(tmp_path: Path, theirs: str, ours: str) -> None:
    _, (row,) = ingested(tmp_path, {"moe_dtype": theirs})
    assert (row["quantisation"], row["dtype"]) == (ours, "bfloat16")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"latency": math.nan}, "latency is missing, not finite or not positive"),
        ({"latency": math.inf}, "latency is missing, not finite or not positive"),
        ({"latency": -1.0}, "latency is missing, not finite or not positive"),
        ({"latency": None}, "latency is missing, not finite or not positive"),
        ({"moe_tp_size": 5}, "inter_size is no multiple of moe_tp_size"),
        ({"moe_ep_size": 3}, "num_experts is no multiple of moe_ep_size"),
        ({"moe_ep_size": 0}, "a size is not a whole number of at least 1"),
        ({"num_tokens": 1.5}, "a size is not a whole number of at least 1"),
        ({"hidden_size": None}, "a size is not a whole number of at least 1"),
        ({"num_tokens": 10**9 + 1}, "num_tokens is above 1000000000"),
        ({"num_experts": 10**8}, "num_experts is above 65536"),
        ({"hidden_size": 10**18}, "hidden_size is above 1000000000"),
        ({"kernel_source": "a|b"}, "a name holds |"),
        ({"version": "0.22|0"}, "a name holds |"),
        ({"topk": 129}, "topk is above num_experts"),
        ({"moe_dtype": "nvfp4"}, "moe_dtype nvfp4 is unknown"),
        ({"moe_dtype": "int4_wo", "inter_size": 96}, "int4 weights have no whole groups of 64"),
        ({"kernel_source": None}, "a name is missing"),
        ({"op_name": "mla"}, "op_name is not moe"),
    ],
)
def test_a_row_that_cannot_be_used_is_skipped_and_counted(
    tmp_path: Path, fault: dict[str, Any], reason: str
) -> None:
    summary, rows = ingested(tmp_path, {"distribution": "balanced"}, fault, fault)
    assert summary.skipped == {reason: 2}
    assert (summary.rows, summary.measurements, summary.repeated) == (3, 1, 0)
    assert [row["distribution"] for row in rows] == ["balanced"]
    alone = public_file(tmp_path / "alone.parquet", fault, {"latency": -1.0})
    assert "no row that can be used" in refusal(alone, tmp_path / "other")


def test_of_rows_that_measured_the_same_the_median_is_kept(tmp_path: Path) -> None:
    repeats = [{"latency": latency, "power": 300.0} for latency in (0.4, 0.9, 0.5)]
    summary, (row,) = ingested(tmp_path, *repeats)
    assert (summary.rows, summary.measurements, summary.repeated) == (3, 1, 2)
    assert row["latency_us_p50"] == 500.0
    assert row["energy_mj"] == pytest.approx(150.0)


def test_scenario_ids_tell_all_apart_and_stay_from_file_to_file(tmp_path: Path) -> None:
    variants: list[dict[str, Any]] = [
        {"version": "0.24.0"},
        {"kernel_source": "marlin"},
        {"moe_dtype": "fp8"},
        {"num_tokens": 97},
        {"hidden_size": 4096},
        {"topk": 4},
        # The same shard, of another whole.
        {"inter_size": 384, "moe_tp_size": 1},
        {"num_experts": 64, "moe_ep_size": 2},
        {"distribution": "balanced"},
    ]
    _, rows = ingested(tmp_path, {}, *variants)
    assert len({row["scenario_id"] for row in rows}) == len(variants) + 1
    ingest_public_file(
        public_file(tmp_path / "again.parquet", {"latency": 9.0}), tmp_path / "other"
    )
    (again,) = read_measurements(tmp_path / "other").to_pylist()
    assert again["scenario_id"] in {row["scenario_id"] for row in rows}


def test_the_same_file_replaces_itself_and_versions_go_side_by_side(tmp_path: Path) -> None:
    out = tmp_path / "d"
    old = public_file(tmp_path / "old.parquet", {}, {"num_tokens": 8})
    new = public_file(tmp_path / "new.parquet", {"version": "0.24.0"}, without=("power",))
    for path in (old, new, old):
        ingest_public_file(path, out)
    rows = read_measurements(out).to_pylist()
    assert sorted(row["framework"] for row in rows) == ["vllm 0.22.0"] * 2 + ["vllm 0.24.0"]
    assert {row["run_id"] for row in rows} == {
        path.stem for path in (out / "measurements").glob("*.parquet")
    }


def test_another_file_of_that_name_needs_force(tmp_path: Path) -> None:
    out = tmp_path / "d"
    path = public_file(tmp_path / "m.parquet", {}, {"num_tokens": 8})
    ingest_public_file(path, out)
    public_file(path, {"latency": 0.75})
    with pytest.raises(InputError, match="already holds another file called"):
        ingest_public_file(path, out)
    assert read_measurements(out).num_rows == 2
    ingest_public_file(path, out, force=True)
    assert read_measurements(out)["latency_us_p50"].to_pylist() == [750.0]


def test_what_is_there_already_is_not_taken_twice(tmp_path: Path) -> None:
    ingest_public_file(public_file(tmp_path / "one.parquet", {}), tmp_path / "d")
    two = public_file(tmp_path / "two.parquet", {}, {"num_tokens": 8})
    with pytest.raises(InputError, match=r"1 of the measurements in two\.parquet"):
        ingest_public_file(two, tmp_path / "d")
    assert read_measurements(tmp_path / "d").num_rows == 1


def test_devices_share_a_dataset_but_neither_a_file_nor_a_sweep(tmp_path: Path) -> None:
    both = public_file(tmp_path / "both.parquet", {}, {"device": "NVIDIA H100"})
    assert "2 devices (NVIDIA H100, NVIDIA H200)" in refusal(both, tmp_path / "none")
    ingest_public_file(public_file(tmp_path / "one.parquet", {}), tmp_path / "d")
    other = public_file(tmp_path / "other.parquet", {"device": "NVIDIA H100"})
    ingest_public_file(other, tmp_path / "d")
    rows = read_measurements(tmp_path / "d").to_pylist()
    assert {row["device_name"] for row in rows} == {"NVIDIA H100", "NVIDIA H200"}
    swept = [{**row, "backend": "nsys"} for row in rows if row["device_name"] == "NVIDIA H200"]
    write_measurements(tmp_path / "swept", "run", swept)
    with pytest.raises(InputError, match=r"a sweep of NVIDIA H200, other\.parquet is of NVIDIA H"):
        ingest_public_file(other, tmp_path / "swept")


def test_files_that_are_no_layers_are_refused_in_one_line(tmp_path: Path) -> None:
    out = tmp_path / "d"
    lacking = public_file(tmp_path / "a.parquet", {}, without=("topk", "latency"))
    assert "lacks the columns topk, latency" in refusal(lacking, out)
    gemm = public_file(tmp_path / "b.parquet", {"op_name": "gemm"}, without=("topk", "moe_dtype"))
    assert "measurements of gemm, not of MoE layers" in refusal(gemm, out)
    text = public_file(tmp_path / "c.parquet", {"latency": "fast"})
    assert "column latency of c.parquet holds varchar, no numbers" in refusal(text, out)
    nested = public_file(tmp_path / "n.parquet", {"framework": ["VLLM"]})
    assert "column framework of n.parquet holds varchar[], no text" in refusal(nested, out)
    empty = tmp_path / "e.parquet"
    pq.write_table(pa.Table.from_pylist([ROW])[:0], empty)
    assert "no row that can be used (it has no rows)" in refusal(empty, out)
    damaged = tmp_path / "f.parquet"
    damaged.write_bytes(gemm.read_bytes()[:-30])
    assert "f.parquet cannot be read as Parquet" in refusal(damaged, out)
    assert "g.parquet is not a file" in refusal(tmp_path / "g.parquet", out)
    odd = tmp_path / "h.csv"
    odd.write_text("a", encoding="utf-8")
    assert "h.csv does not end in .parquet" in refusal(odd, out)


def test_names_that_sql_would_read_otherwise(tmp_path: Path) -> None:
    folder = tmp_path / "it's [1] *"
    folder.mkdir()
    _, (row,) = ingested(folder, {"kernel_source": "o'kernel", "distribution": "a|b"})
    assert (row["kernel"], row["distribution"]) == ("vllm:o'kernel", "a|b")


def test_a_damaged_dataset_is_named(tmp_path: Path) -> None:
    ingest_public_file(public_file(tmp_path / "one.parquet", {}), tmp_path / "d")
    (part,) = (tmp_path / "d/measurements").glob("*.parquet")
    part.write_bytes(part.read_bytes()[:-20])
    two = public_file(tmp_path / "two.parquet", {"num_tokens": 8})
    with pytest.raises(DatasetError, match="damaged"):
        ingest_public_file(two, tmp_path / "d")


def test_the_summary_counts_by_kernel(tmp_path: Path) -> None:
    ingested(tmp_path, {}, {"num_tokens": 8, "latency": 0.1}, {"inter_size": 1536})
    summary = summarise_dataset(tmp_path / "d")
    (kernel,) = summary.kernels
    assert (kernel["classes"], kernel["scenarios"]) == (2, 3)
    assert (kernel["with_energy"], kernel["energy_trusted"]) == (3, 2)
    (origin,) = summary.origins
    assert (origin["backend"], origin["energy_source"]) == ("aiconfigurator", "power_samples")


SILICON = Path(__file__).resolve().parents[2] / "../shared/data/silicon"


@pytest.mark.skipif(not SILICON.is_dir(), reason="the public files are not on this machine")
def test_a_whole_public_file(tmp_path: Path) -> None:
    path = SILICON / "h200_moe_latency_power_vllm-0.22.parquet"
    summary = ingest_public_file(path, tmp_path / "d")
    assert (summary.rows, summary.measurements, summary.skipped) == (34_914, 34_914, {})
    assert summary.with_energy == 34_914
    mine = read_measurements(tmp_path / "d")
    assert len(set(mine["scenario_id"].to_pylist())) == 34_914
    connection = duckdb.connect()
    connection.register("mine", mine)
    connection.register("theirs", pq.read_table(path))
    matched = connection.execute("""
        SELECT count(*),
               max(abs(latency_us_p50 / 1e3 / latency - 1)),
               max(abs(energy_mj / (latency * power) - 1)),
               count(*) FILTER (energy_trusted)
        FROM mine JOIN theirs
          ON d_model = hidden_size AND d_ff * tp_size = inter_size AND top_k = topk
         AND experts * ep_size = num_experts AND tp_size = moe_tp_size AND ep_size = moe_ep_size
         AND tokens = num_tokens AND mine.distribution = theirs.distribution
         AND kernel = 'vllm:' || kernel_source
         AND CASE quantisation WHEN 'none' THEN 'bfloat16' WHEN 'int4' THEN 'int4_wo'
             ELSE quantisation END = moe_dtype
    """).fetchone()
    assert matched is not None
    count, latency, energy, trusted = matched
    runner = CliRunner().invoke(app, ["inspect", str(tmp_path / "d")])
    assert runner.exit_code == 0
    assert "layer, fp8_block, vllm 0.22.0 vllm_fused_moe\n" in runner.stdout
    assert "energy of 11340 (5606 trusted)" in " ".join(runner.stdout.split())
    assert (count, trusted) == (34_914, summary.energy_trusted)
    assert max(latency, energy) < 1e-12
