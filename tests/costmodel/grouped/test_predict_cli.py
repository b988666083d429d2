"""From public measurements to the prices of layers nobody measured."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from public_layers import Fitted
from typer.testing import CliRunner

from costprof.cli.main import app
from costprof.core.errors import CostprofError, InputError, TableError
from costprof.costmodel.grouped.model import Measured
from costprof.costmodel.grouped.rows import measured_of_table
from costprof.costmodel.grouped.serialise import from_bytes, to_bytes
from costprof.costmodel.grouped.unknown_methods import OTHER_KERNEL_STD, OTHER_VERSION_STD
from costprof.costmodel.tablefile import read_table


def predict(table: Path, points: Path, out: Path) -> pa.Table:
    command = ["predict", "--model", str(table), "--points", str(points), "--out", str(out)]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return pq.read_table(out)


def refused(arguments: list[str]) -> str:
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, CostprofError)
    text = str(done.exception)
    assert "\n" not in text
    return text


def test_a_new_shape_is_priced_row_for_row(fitted: Fitted, tmp_path: Path) -> None:
    asked = pq.read_table(fitted.held_out)
    priced = predict(fitted.table, fitted.held_out, tmp_path / "q.parquet")
    assert priced.select(asked.column_names).equals(asked)
    truth, told = asked["latency"].to_numpy(), priced["latency_ms"].to_numpy()
    error = np.abs(told / truth - 1)
    assert error.mean() < 0.08
    low, high = priced["latency_ms_p05"].to_numpy(), priced["latency_ms_p95"].to_numpy()
    assert ((low < told) & (told < high)).all()
    assert ((low <= truth) & (truth <= high)).mean() > 0.75
    energy = asked["power"].to_numpy() * truth
    assert np.abs(priced["energy_mj"].to_numpy() / energy - 1).mean() < 0.12
    assert np.allclose(
        priced["energy_mj"].to_numpy(), told * priced["power_w"].to_numpy(), rtol=1e-9
    )
    assert set(priced["tier"].to_pylist()) == {"predicted"}


def test_what_was_measured_costs_what_was_read(fitted: Fitted, tmp_path: Path) -> None:
    asked = pq.read_table(fitted.source)
    priced = predict(fitted.table, fitted.source, tmp_path / "q.parquet")
    assert np.allclose(priced["latency_ms"].to_numpy(), asked["latency"].to_numpy())
    assert set(priced["tier"].to_pylist()) == {"measured"}
    between = asked.set_column(
        asked.column_names.index("num_tokens"), "num_tokens", pa.array([90] * asked.num_rows)
    )
    pq.write_table(between, tmp_path / "between.parquet")
    told = predict(fitted.table, tmp_path / "between.parquet", tmp_path / "b.parquet")
    assert set(told["tier"].to_pylist()) == {"interpolated"}


def test_a_few_measurements_of_a_new_shape_narrow_its_prices(fitted: Fitted) -> None:
    file = read_table(fitted.table)
    model, known = from_bytes(file.model), measured_of_table(file.rows)
    assert known is not None
    from costprof.costmodel.grouped.public import public_points

    asked = pq.read_table(fitted.held_out)
    points, truth = public_points(asked), asked["latency"].to_numpy() * 1e3
    few = np.arange(len(points)) % 7 == 0
    unknown = np.full(int(few.sum()), np.nan)
    measured = Measured(points.take(few), truth[few], unknown)
    rest = points.take(~few)
    before, after = model.predict(rest), model.predict(rest, measured)
    errors = [np.abs(p.latency_us[1] / truth[~few] - 1).mean() for p in (before, after)]
    assert errors[1] < 0.8 * errors[0]
    widths = [np.log(p.latency_us[2] / p.latency_us[0]).mean() for p in (before, after)]
    assert widths[1] < widths[0]
    assert after.known_group.all()


def test_a_model_is_the_same_after_a_round_trip_and_damage_is_named(fitted: Fitted) -> None:
    data = read_table(fitted.table).model
    assert to_bytes(from_bytes(data)) == data
    for damaged in (b"", data[:200], b"\x80\x04" + data, data[:-9]):
        with pytest.raises(TableError, match="cannot be read"):
            from_bytes(damaged)


def test_fitting_twice_gives_the_same_table(fitted: Fitted, tmp_path: Path) -> None:
    again = tmp_path / "again.parquet"
    done = CliRunner().invoke(app, ["fit", str(fitted.dataset), "--out", str(again), "--json"])
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)["validation"]["grouped"]
    assert figures["chosen"]["known_groups"] in figures["known_groups"]
    assert read_table(again).manifest.content_hash == read_table(fitted.table).manifest.content_hash


@pytest.mark.parametrize(
    ("column", "value", "fact"),
    [
        ("num_tokens", 0, "no positive whole number"),
        ("moe_tp_size", 7, "no multiple"),
        ("topk", 10_000, "larger than num_experts"),
        ("distribution", "zipf", "unknown"),
        ("num_tokens", 10**9 + 1, "row 0: num_tokens is 1000000001, above 1000000000"),
        ("num_tokens", 10**18, "row 0: num_tokens is 1e+18, above 1000000000"),
        ("num_tokens", 1e19, "row 0: num_tokens is 1e+19, above 1000000000"),
        ("num_experts", 10**8, "row 0: num_experts is 100000000, above 65536"),
        ("topk", datetime(2026, 1, 1, tzinfo=UTC), "column topk holds no numbers"),
        ("topk", [8], "column topk holds no numbers"),
        ("kernel_source", "a|b", "row 0: kernel_source is 'a|b', with a | in it"),
        ("framework", "v|m", "row 0: framework is 'v|m', with a | in it"),
    ],
)
def test_points_that_make_no_layer_are_refused(
    fitted: Fitted, tmp_path: Path, column: str, value: object, fact: str
) -> None:
    asked = pq.read_table(fitted.held_out)
    wrong = asked.set_column(
        asked.column_names.index(column), column, pa.array([value] * asked.num_rows)
    )
    pq.write_table(wrong, tmp_path / "p.parquet")
    out = tmp_path / "q.parquet"
    arguments = ["predict", "--model", str(fitted.table), "--points", str(tmp_path / "p.parquet")]
    assert fact in refused([*arguments, "--out", str(out)])
    assert not out.exists()


def test_files_that_cannot_serve_are_refused(fitted: Fitted, tmp_path: Path) -> None:
    table, points = str(fitted.table), str(fitted.held_out)
    missing, out = str(tmp_path / "none.parquet"), str(tmp_path / "q.parquet")

    def asked(model: str, of: str) -> str:
        return refused(["predict", "--model", model, "--points", of, "--out", out])

    assert "there is no file" in asked(missing, points)
    assert "there is no file" in asked(table, missing)
    (tmp_path / "text.parquet").write_text("text")
    assert "cannot be read as Parquet" in asked(table, str(tmp_path / "text.parquet"))
    pq.write_table(pa.table({"num_tokens": [1]}), tmp_path / "thin.parquet")
    assert "there is no column" in asked(table, str(tmp_path / "thin.parquet"))
    priced = tmp_path / "priced.parquet"
    predict(fitted.table, fitted.held_out, priced)
    assert "already" in asked(table, str(priced))
    done = CliRunner().invoke(
        app, ["predict", "--model", table, "--points", points, "--out", str(priced)]
    )
    assert isinstance(done.exception, InputError)


@pytest.mark.parametrize(
    ("column", "value", "least"),
    [("version", "0.98.0", OTHER_VERSION_STD), ("kernel_source", "another", OTHER_KERNEL_STD)],
)
def test_a_method_nobody_measured_is_as_doubtful_as_methods_differ(
    fitted: Fitted, tmp_path: Path, column: str, value: str, least: float
) -> None:
    asked = pq.read_table(fitted.source)
    known = predict(fitted.table, fitted.held_out, tmp_path / "first.parquet")
    for name in (fitted.source, fitted.held_out):
        asked = pq.read_table(name)
        at = asked.column_names.index(column)
        pq.write_table(
            asked.set_column(at, column, pa.array([value] * asked.num_rows)),
            tmp_path / "other.parquet",
        )
        told = predict(
            fitted.table, tmp_path / "other.parquet", tmp_path / f"{name.stem}_q.parquet"
        )
        assert "measured" not in told["tier"].to_pylist()
        for quantity in ("latency_ms", "energy_mj"):
            wide = np.log(told[f"{quantity}_p95"].to_numpy() / told[quantity].to_numpy())
            assert (wide > 1.6 * least).all()
    assert told["latency_ms"].to_numpy() == pytest.approx(known["latency_ms"].to_numpy())
