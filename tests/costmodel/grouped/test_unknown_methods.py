"""Layers of methods, devices and routings that the fitted model does not know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from public_layers import SHAPES, Fitted, public_table, write_public
from typer.testing import CliRunner

from costprof.cli.main import app
from costprof.core.errors import InputError
from costprof.costmodel.grouped.public import public_points
from costprof.costmodel.grouped.serialise import from_bytes
from costprof.costmodel.grouped.unknown_methods import (
    OTHER_KERNEL_STD,
    doubt_std,
    likest_methods,
    with_known_methods,
)
from costprof.costmodel.tablefile import read_table

SLOWER = 3.0


def run(*command: str | Path) -> Any:
    done = CliRunner().invoke(app, [*map(str, command), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def with_column(table: pa.Table, name: str, value: object) -> pa.Table:
    return table.set_column(
        table.column_names.index(name), name, pa.array([value] * table.num_rows)
    )


def curve(table: pa.Table) -> pa.Table:
    """One curve of the first shape in `table`: all its token counts."""
    keep = pc.and_(
        pc.and_(pc.equal(table["moe_tp_size"], 2), pc.equal(table["moe_ep_size"], 1)),
        pc.and_(
            pc.equal(table["distribution"], "balanced"), pc.equal(table["moe_dtype"], "bfloat16")
        ),
    )
    found = table.filter(pc.and_(keep, pc.equal(table["hidden_size"], SHAPES[0][0])))
    return found.filter(pc.equal(found["num_experts"], SHAPES[0][3]))


@pytest.fixture(scope="module")
def slower(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pa.Table]:
    """A table fitted to layers of one version, and half a curve of another, three times as slow.

    With them come layers of routings that nobody can deal to experts. Also the curve's other half.
    """
    folder = tmp_path_factory.mktemp("slower")
    known = public_table(SHAPES[:2])
    new = with_column(curve(known), "version", "0.97.0")
    latency = pa.array(new["latency"].to_numpy() * SLOWER)
    new = new.set_column(new.column_names.index("latency"), "latency", latency)
    told = np.arange(new.num_rows) % 2 == 0
    odd = with_column(curve(known), "distribution", "uniform")
    one = with_column(curve(known), "distribution", "power_law_1.0").slice(0, 1)
    write_public(folder / "all.parquet", pa.concat_tables([known, new.filter(told), odd, one]))
    run(
        *("ingest", "--format", "aiconfigurator", folder / "all.parquet"),
        *("--out", folder / "data"),
    )
    fit = run("fit", folder / "data", "--out", folder / "t.parquet")
    assert "8 layers of routing uniform were not used" in fit["notes"]
    assert "1 layers of routing power_law_1.0 were not used" in fit["notes"]
    return folder / "t.parquet", new.filter(~told)


def test_readings_of_an_unknown_version_are_used(
    slower: tuple[Path, pa.Table], tmp_path: Path
) -> None:
    table, asked = slower
    pq.write_table(asked, tmp_path / "p.parquet")
    run(
        *("predict", "--model", table, "--points", tmp_path / "p.parquet"),
        *("--out", tmp_path / "q.parquet"),
    )
    told = pq.read_table(tmp_path / "q.parquet")
    assert told["tier"].to_pylist() == ["interpolated"] * 3 + ["extrapolated"]
    truth, price = told["latency"].to_numpy(), told["latency_ms"].to_numpy()
    assert np.abs(price / truth - 1).max() < 0.25
    low, high = told["latency_ms_p05"].to_numpy(), told["latency_ms_p95"].to_numpy()
    assert ((low <= truth) & (truth <= high)).all()
    energy = told["power_w"].to_numpy() * price
    np.testing.assert_allclose(told["energy_mj"].to_numpy(), energy, rtol=1e-9)


def test_an_unknown_precision_is_as_doubtful_as_an_unknown_kernel(fitted: Fitted) -> None:
    file = read_table(fitted.table)
    model = from_bytes(file.model)
    asked = public_points(with_column(pq.read_table(fitted.held_out), "moe_dtype", "int4_wo"))
    assert likest_methods(np.unique(asked.method).tolist(), model) == {}
    assert with_known_methods(asked, model) is asked
    assert (doubt_std(asked, model) == OTHER_KERNEL_STD).all()
    known = public_points(pq.read_table(fitted.held_out))
    assert (doubt_std(known, model) == 0.0).all()


def test_what_another_device_measured_is_no_measurement_of_this(
    fitted: Fitted, tmp_path: Path
) -> None:
    asked = with_column(pq.read_table(fitted.source), "device", "NVIDIA H100 80GB HBM3")
    asked = asked.slice(0, 5)
    pq.write_table(
        pa.concat_tables([asked, pq.read_table(fitted.source).slice(0, 1)]), tmp_path / "p"
    )
    report = run(
        *("predict", "--model", fitted.table, "--points", tmp_path / "p"),
        *("--out", tmp_path / "q.parquet"),
    )
    assert report["tiers"] == {"measured": 1, "predicted": 5}
    assert report["notes"] == ["5 rows name NVIDIA H100 80GB HBM3: priced as on NVIDIA H200"]


def test_an_unknown_precision_is_named(fitted: Fitted, tmp_path: Path) -> None:
    asked = with_column(pq.read_table(fitted.held_out), "moe_dtype", "fp3")
    pq.write_table(asked.slice(0, 2), tmp_path / "p")
    report = run(
        *("predict", "--model", fitted.table, "--points", tmp_path / "p"),
        *("--out", tmp_path / "q.parquet"),
    )
    (note,) = report["notes"]
    assert note.startswith("2 rows are of moe_dtype fp3, which is not known")
    told = pq.read_table(tmp_path / "q.parquet")
    wide = np.log(told["latency_ms_p95"].to_numpy() / told["latency_ms"].to_numpy())
    assert (wide > 1.6 * OTHER_KERNEL_STD).all()


def test_rows_of_another_op_are_refused(fitted: Fitted) -> None:
    asked = with_column(pq.read_table(fitted.held_out), "op_name", "gemm")
    with pytest.raises(InputError, match="row 0: op_name is gemm, not moe; nothing was priced"):
        public_points(asked)
