"""Check the dataset that `make demo` left: really nsys, at least 60 scenarios, a table that loads.

python .ci/check_demo.py out/demo
"""

from __future__ import annotations

import sys
from pathlib import Path

import duckdb
import torch

from costprof.costmodel.table import CostTable


def main(folder: Path) -> int:
    parts = str(folder / "measurements" / "*.parquet")
    rows = duckdb.sql(
        "SELECT count(*), count(DISTINCT scenario_id), list(DISTINCT backend), "
        "count(*) FILTER (WHERE status = 'failed') FROM read_parquet($parts)",
        params={"parts": parts},
    ).fetchone()
    assert rows is not None
    count, distinct, backends, failed = rows
    ranges = duckdb.sql(
        "SELECT count(*) FROM read_parquet($parts) WHERE domain = 'costprof'",
        params={"parts": str(folder / "ranges" / "*.parquet")},
    ).fetchone()
    table = CostTable.load(folder / "table.parquet")
    counts = torch.ones(table.n_experts, dtype=torch.int64)
    cost = table.layer_cost(counts)
    print(
        f"{count} rows, {distinct} scenarios, backends {backends}, {failed} failed, "
        f"{ranges[0] if ranges else 0} NVTX ranges; a layer with one token for each of "
        f"{table.n_experts} experts is predicted at {float(cost.latency_us):.0f} us"
    )
    good = count == distinct >= 60 and backends == ["nsys"] and failed == 0
    return 0 if good and float(cost.latency_us) > 0 else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
