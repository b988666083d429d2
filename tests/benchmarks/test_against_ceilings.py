"""The report on kernels against ceilings, on a dataset whose answers are plain."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from costprof.core.files import write_json
from costprof.profiler.dataset import write_measurements
from costprof.profiler.schema import MEASUREMENTS

ROOT = Path(__file__).resolve().parents[2]
OURS = "costprof.runtime.kernels.triton_experts:grouped_swiglu"
VLLM = "costprof.runtime.kernels.vllm_fused_moe:fused_swiglu"
TORCH = "costprof.runtime.kernels.torch_grouped_mm:grouped_mm_swiglu"


def row(kernel: str, tokens: int, us: float, **values: Any) -> dict[str, Any]:
    return dict.fromkeys(MEASUREMENTS.names) | {
        "op": "layer",
        "kernel": kernel,
        "tokens": tokens,
        "distribution": "balanced",
        "quantisation": "none",
        "config": "{}",
        "status": "ok",
        "latency_us_p25": us * 0.98,
        "latency_us_p50": us,
        "latency_us_p75": us * 1.02,
        "weight_bytes": 90e6,
        "activation_bytes": 10e6,
        "flops": 1e9,
        **values,
    }


def test_decode_is_set_against_the_copy_prefill_against_torch_and_both_against_vllm(
    tmp_path: Path,
) -> None:
    rows = [
        row(OURS, 16, 50.0, config='{"BLOCK_M": 16}'),
        row(OURS, 16, 80.0, config='{"BLOCK_M": 64}'),  # slower: another config won
        row(OURS, 16, 10.0, status="noisy"),
        row(OURS, 1024, 200.0),
        row(TORCH, 16, 60.0),
        row(TORCH, 1024, 180.0),
        row(VLLM, 16, 55.0),
    ]
    write_measurements(tmp_path / "data", "r1", rows)
    ceilings = {
        "device": {"name": "A GPU"},
        "copy_bytes_per_s": {"median": 2.5e12},
        "bf16_matmul_flops": {"median": 1e14},
    }
    write_json(tmp_path / "ceilings.json", ceilings)
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks" / "against_ceilings.py")),
            *(str(tmp_path / "data"), "--ceilings", str(tmp_path / "ceilings.json"), "--json"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(done.stdout)
    assert report["left_out"] == 1
    decode, prefill = report["rows"]
    assert (decode["tokens"], decode["config"]) == (16, '{"BLOCK_M": 16}')
    # 100 MB in 50 us are 2e12 bytes/s of 2.5e12.
    assert decode["copy_share"] == pytest.approx(0.8)
    assert decode["spread"] == pytest.approx(0.04)
    assert (decode["of_vllm"], prefill["of_vllm"]) == (pytest.approx(1.1), None)
    assert prefill["of_library"] == pytest.approx(0.9)
    assert prefill["matmul_share"] == pytest.approx(1e9 / 200e-6 / 1e14)
    assert [text.split()[0] for text in report["summary"].values()] == ["80.0%", "90.0%", "110.0%"]
