from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from costprof.core.device import DeviceFingerprint
from costprof.core.errors import DatasetError
from costprof.core.expert import ExpertClass, Kernel, LayerClass
from costprof.profiler.dataset import read_measurements, write_measurements
from costprof.profiler.rows import Attempt, Energy, Provenance, measurement_row
from costprof.profiler.scenario import Scenario
from costprof.profiler.schema import ADDED_COLUMNS, MEASUREMENTS
from costprof.profiler.statistics import Summary

SUMMARY = Summary(
    n=20,
    calls_per_sample=1,
    mean_us=50.0,
    p05_us=50.0,
    p25_us=50.0,
    p50_us=50.0,
    p75_us=50.0,
    p95_us=50.0,
    robust_cv=0.0,
    pass_disagreement=0.0,
    kernel_sum_us=None,
    kernels_per_call=1.0,
)


def layer_row() -> dict[str, Any]:
    """The row of a layer on one of four expert-parallel ranks."""
    scenario = Scenario(
        expert=ExpertClass(d_model=64, d_ff=64),
        op="layer",
        tokens=6,
        cache_state="warm",
        kernel=Kernel(name="m:f"),
        device="cuda",
        layer=LayerClass(
            experts=2, top_k=2, counts=(6, 6), distribution="balanced", ep_size=4, tp_size=1
        ),
    )
    return measurement_row(
        scenario,
        Attempt(
            run_id="r.0",
            summary=SUMMARY,
            problem=None,
            threads=None,
            timer="cuda_graph",
            copies=None,
            measured_at=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        ),
        1,
        Provenance(
            backend="inprocess",
            tool_version="",
            device=DeviceFingerprint(kind="gpu", name="G"),
            software=dict.fromkeys(("costprof", "python", "torch", "triton"), ""),
        ),
        lambda **_: Energy(
            active_mj=5.0,
            idle_mj=2.0,
            low_mj=4.0,
            high_mj=6.0,
            power_mean_w=140.0,
            temp_rise_c=0.1,
            source="modelled",
        ),
    )


def test_a_layer_states_the_tokens_of_the_whole_batch_and_all_energy() -> None:
    row = layer_row()
    assert (row["tokens"], row["batch_tokens"]) == (6, 24)
    assert row["energy_mj"] == 7.0
    assert "energy_trusted" not in row  # modelled: nothing was measured


def test_datasets_from_before_a_column_are_read_with_it_empty(tmp_path: Path) -> None:
    write_measurements(tmp_path, "new", [layer_row()])
    new = read_measurements(tmp_path)
    old = tmp_path / "measurements" / "old.parquet"
    pq.write_table(new.drop_columns(list(ADDED_COLUMNS)), old)
    both = read_measurements(tmp_path)
    assert both.schema.equals(MEASUREMENTS)
    assert both["batch_tokens"].to_pylist() == [24, None]
    assert both["energy_mj"].to_pylist() == [7.0, None]
    assert both["latency_us_p50"].to_pylist() == [50.0, 50.0]


def test_other_columns_than_those_are_not_made_up(tmp_path: Path) -> None:
    write_measurements(tmp_path, "new", [layer_row()])
    (part,) = (tmp_path / "measurements").glob("*.parquet")
    pq.write_table(pq.read_table(part).drop_columns(["latency_us_p50"]), part)
    with pytest.raises(DatasetError, match="other columns"):
        read_measurements(tmp_path)
