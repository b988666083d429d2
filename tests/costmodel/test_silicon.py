"""The fit on public measurements of matrix products on an H200, where they are at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from costprof.core.expert import ExpertClass, Kernel, class_id
from costprof.costmodel.measurements import MeasuredCurve, measured_curves
from costprof.costmodel.residual import fit_latency
from costprof.costmodel.validation import latency_figures, leave_one_out

DATA = (
    Path(__file__).resolve().parents[2]
    / "../shared/data/silicon/h200_gemm_latency_power_vllm-0.22.parquet"
)
# (n, k) of the products: weights of 67, 134 and 403 MB, all beyond the 50 MB cache.
SHAPES = ((8192, 4096), (8192, 8192), (12288, 16384))
EVERY = 3


@pytest.fixture
def curves() -> list[MeasuredCurve]:
    """Every third token count of a few bfloat16 products, as the second projection of an expert."""
    if not DATA.is_file():
        pytest.skip(f"{DATA.name} is not beside this checkout")
    kernel = Kernel(name="library:gemm", framework="vllm 0.22.0")
    wanted = [("gemm_dtype", "=", "bfloat16"), ("m", "<=", 4096)]
    rows: list[dict[str, Any]] = []
    for n, k in SHAPES:
        table = pq.read_table(DATA, filters=[*wanted, ("n", "=", n), ("k", "=", k)])
        expert = ExpertClass(d_model=n, d_ff=k)
        found = sorted(zip(table["m"].to_pylist(), table["latency"].to_pylist(), strict=True))
        for tokens, latency_ms in found[::EVERY]:
            latency_us = 1e3 * latency_ms
            rows.append(
                {
                    **expert.to_dict(),
                    "class_id": class_id(expert, "fc2", kernel, "cold"),
                    "op": "fc2",
                    "kernel": kernel.name,
                    "kernel_source_hash": "",
                    "framework": kernel.framework,
                    "config": "{}",
                    "cache_state": "cold",
                    "tokens": tokens,
                    "status": "ok",
                    "latency_us_p05": latency_us,
                    "latency_us_p50": latency_us,
                    "latency_us_p95": latency_us,
                    "n": 1,
                    "robust_cv": 0.0,
                    "pass_disagreement": 0.0,
                }
            )
    return measured_curves(rows)


def test_real_kernels_are_described_and_predicted(curves: list[MeasuredCurve]) -> None:
    assert [len(curve.tokens) > 15 for curve in curves] == [True] * len(SHAPES)
    model = fit_latency(curves)
    # The datasheet says 989e12 and 4.8e12; real kernels stay below both, but not far.
    assert 5e14 < model.roofline.peak_flops["bfloat16/none"] < 9.9e14
    assert 3.5e12 < model.roofline.bytes_per_s["cold"] < 4.8e12
    figures = latency_figures(leave_one_out(curves, model))["interior"]
    assert figures["model"]["mape"] < 4.0
    assert figures["model"]["mape"] < 0.7 * figures["roofline"]["mape"]
    # With every third token count known a straight line does well too: about 2.7 % for both.
    assert figures["model"]["median"] < figures["linear"]["median"]
    assert figures["model"]["coverage_90"] > 80.0
