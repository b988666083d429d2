"""Grouped expert kernels of a dataset against the machine's ceilings, torch's and vLLM's kernels.

    python benchmarks/against_ceilings.py data/measured/GPU/Qwen3-30B-A3B \
        --ceilings data/measured/GPU/ceilings.json

Decode: compulsory bytes over latency, as a share of the copy bandwidth measured on the same
machine (aim: 80 %). Prefill: torch's latency over ours on the same token counts (aim: 85 %), and
the share of the measured bf16 matrix product; beside it vLLM's latency over ours where the dataset
has its kernel. Of several tile configs the fastest is taken; rows
that failed the quality gate are left out and counted.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import duckdb

OURS, THEIRS, VLLM = "%triton_experts:grouped%", "%torch_grouped_mm:%", "%vllm_fused_moe:%"
DECODE_TOKENS, PREFILL_TOKENS = 64, 512

QUERY = """
WITH layers AS (
    SELECT tokens, distribution, quantisation, kernel, config, latency_us_p50 AS us,
        (latency_us_p75 - latency_us_p25) / latency_us_p50 AS spread,
        weight_bytes + activation_bytes AS bytes, flops
    FROM read_parquet($parts) WHERE op = 'layer' AND status = 'ok'
), best AS (
    SELECT * FROM layers WHERE kernel LIKE $ours
    QUALIFY row_number() OVER (PARTITION BY tokens, distribution, quantisation ORDER BY us) = 1
), library AS (
    SELECT tokens, distribution, min(us) AS us FROM layers WHERE kernel LIKE $theirs GROUP BY ALL
), vllm AS (
    SELECT tokens, distribution, min(us) AS us FROM layers WHERE kernel LIKE $vllm GROUP BY ALL
)
SELECT b.tokens, b.distribution, b.quantisation, b.config, b.us, b.spread,
    b.bytes / b.us * 1e6 / $copy AS copy_share, b.flops / b.us * 1e6 / $matmul AS matmul_share,
    CASE WHEN b.quantisation = 'none' THEN l.us / b.us END AS of_library,
    CASE WHEN b.quantisation = 'none' THEN v.us / b.us END AS of_vllm
FROM best AS b
    LEFT JOIN library AS l USING (tokens, distribution)
    LEFT JOIN vllm AS v USING (tokens, distribution)
ORDER BY quantisation, distribution, tokens
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--ceilings", type=Path, required=True)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--ours", default=OURS, help="SQL pattern of the kernel looked at")
    options = parser.parse_args()
    ceilings = json.loads(options.ceilings.read_text(encoding="utf-8"))
    report = compare(options.dataset, ceilings, options.ours)
    if options.json:
        json.dump(report, sys.stdout, indent=1)
        print()
        return 0
    print(f"{report['device']}: {len(report['rows'])} layers, {report['left_out']} rows left out")
    for row in report["rows"]:
        of_library, of_vllm = (
            "-" if row[name] is None else f"{row[name]:.2f}" for name in ("of_library", "of_vllm")
        )
        print(
            f"{row['quantisation']:<5} {row['distribution']:<10} T={row['tokens']:<5} "
            f"{row['us']:9.1f} us (IQR {row['spread']:.1%})  copy {row['copy_share']:6.1%}  "
            f"matmul {row['matmul_share']:6.1%}  torch/ours {of_library}  "
            f"vLLM/ours {of_vllm}"
        )
    for name, value in report["summary"].items():
        print(f"{name}: {value}")
    return 0


def compare(dataset: Path, ceilings: dict[str, Any], ours: str = OURS) -> dict[str, Any]:
    """Return a row for each layer our kernels ran, and the medians the aims are about."""
    parts = str(dataset / "measurements" / "*.parquet")
    found = duckdb.sql(
        QUERY,
        params={
            "parts": parts,
            "ours": ours,
            "theirs": THEIRS,
            "vllm": VLLM,
            "copy": ceilings["copy_bytes_per_s"]["median"],
            "matmul": ceilings["bf16_matmul_flops"]["median"],
        },
    )
    rows = [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]
    left_out = duckdb.sql(
        "SELECT count(*) FROM read_parquet($parts) WHERE op = 'layer' AND status <> 'ok'",
        params={"parts": parts},
    ).fetchone()
    dense = [row for row in rows if row["quantisation"] == "none"]
    decode = [row["copy_share"] for row in dense if row["tokens"] <= DECODE_TOKENS]
    prefill = [
        row["of_library"]
        for row in dense
        if row["tokens"] >= PREFILL_TOKENS and row["of_library"] is not None
    ]
    return {
        "device": ceilings["device"]["name"],
        "left_out": left_out[0] if left_out else 0,
        "rows": rows,
        "summary": {
            f"decode, share of copy bandwidth, up to {DECODE_TOKENS} tokens": spread(decode),
            f"prefill, torch grouped product over ours, from {PREFILL_TOKENS} tokens": spread(
                prefill
            ),
            "vLLM's fused experts over ours": spread(
                [row["of_vllm"] for row in dense if row["of_vllm"] is not None]
            ),
        },
    }


def spread(values: list[float]) -> str:
    """Median with the least and the most."""
    if not values:
        return "not measured"
    values = sorted(values)
    middle = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
    return f"{middle:.1%} ({values[0]:.1%} to {values[-1]:.1%}, {len(values)} layers)"


if __name__ == "__main__":
    sys.exit(main())
