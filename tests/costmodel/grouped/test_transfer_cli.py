"""A table of a device never measured, by the command line, and how far off it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from public_layers import public_table
from threadpoolctl import threadpool_limits
from transfer_files import LIMIT_W, TARGET, Devices
from typer.testing import CliRunner

from costprof.cli.main import app
from costprof.core.errors import CostprofError
from costprof.costmodel.devices import named_device
from costprof.costmodel.grouped.serialise_transfer import is_transfer
from costprof.costmodel.table import CostTable
from costprof.costmodel.tablefile import TableFile, read_table

FEW = 60
SPECS = Path(__file__).resolve().parents[3] / "data" / "devices"


def run(*arguments: str | Path) -> str:
    with threadpool_limits(1):
        done = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [str(each) for each in arguments])
    assert isinstance(done.exception, CostprofError), done.output
    text = str(done.exception)
    assert "\n" not in text
    return text


@dataclass(frozen=True)
class World:
    """Datasets of the source, of few layers of the target and of both; tables without and with."""

    files: Devices
    source: Path
    few: Path
    both: Path
    own_spec: Path
    unmeasured: Path
    corrected: Path
    said: dict[str, Any]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("devices")
    files = Devices.written(folder, FEW)
    source, few, both = (folder / name for name in ("source", "few", "both"))
    for out, paths in (
        (source, [files.source]),
        (few, [files.few]),
        (both, [files.source, files.target]),
    ):
        run("ingest", "--format", "aiconfigurator", *paths, "--out", out)
    own_spec = folder / "own.toml"
    text = (SPECS / "b200.toml").read_text(encoding="utf-8")
    own_spec.write_text(text.replace('"B200 SXM"', '"Own 1"'), encoding="utf-8")
    unmeasured, corrected = folder / "unmeasured.parquet", folder / "corrected.parquet"
    run("fit", "--from", source, "--device", "b200", "--out", unmeasured)
    said = run("fit", few, "--from", source, "--device", own_spec, "--out", corrected, "--json")
    return World(files, source, few, both, own_spec, unmeasured, corrected, json.loads(said))


def mape(table: Path, asked: Path, out: Path) -> tuple[float, dict[str, int]]:
    """Return the error of the prices by `table` of the layers `asked`, and their tiers."""
    run("predict", "--model", table, "--points", asked, "--out", out)
    priced = pq.read_table(out)
    error = np.abs(priced["latency_ms"].to_numpy() / priced["latency"].to_numpy() - 1.0)
    tiers = {each["values"]: each["counts"] for each in pc.value_counts(priced["tier"]).to_pylist()}
    return float(error.mean()), tiers


def tiers_of(file: TableFile) -> dict[str, int]:
    counts = pc.value_counts(file.rows["tier"]).to_pylist()
    return {each["values"]: each["counts"] for each in counts}


def test_a_device_nobody_measured_gets_a_table_of_its_own(world: World) -> None:
    file = read_table(world.unmeasured)
    known = pq.read_table(world.files.source)
    assert tiers_of(file) == {"transferred": known.num_rows}
    device = file.manifest.device
    assert (device.name, device.power_limit_w) == (TARGET, LIMIT_W)
    (source,) = file.manifest.sources
    assert (source.name, source.rows_used) == ("source", known.num_rows)
    assert any("NVIDIA H200" in note for note in file.manifest.notes)
    assert is_transfer(file.model)
    figures = file.manifest.validation["transfer"]
    assert (figures["points"], figures["left_out"]) == (0, {})
    assert figures["half_width_90"] > 1.0
    assert set(file.rows["energy_source"].to_pylist()) == {"modelled"}
    assert pc.max(file.rows["power_w"]).as_py() <= LIMIT_W + 1e-6
    shown = run("table", "show", world.unmeasured)
    assert f"for {TARGET}" in shown
    assert f"carried from NVIDIA H200 to {TARGET}" in shown


def test_a_transferred_table_prices_any_layer_of_its_device(world: World, tmp_path: Path) -> None:
    asked, out = world.files.target, tmp_path / "priced.parquet"
    number = pq.read_table(asked).num_rows
    without, tiers = mape(world.unmeasured, asked, out)
    assert tiers == {"transferred": number}
    priced = pq.read_table(out)
    inside = pc.and_(
        pc.less_equal(priced["latency_ms_p05"], priced["latency"]),
        pc.less_equal(priced["latency"], priced["latency_ms_p95"]),
    )
    assert inside.to_numpy().mean() > 0.85
    corrected, tiers = mape(world.corrected, asked, tmp_path / "corrected.parquet")
    assert tiers == {"measured": FEW, "transferred": number - FEW}
    assert corrected < 0.8 * without


def test_few_layers_of_the_target_are_rows_and_tell_how_far_off_it_is(world: World) -> None:
    file = read_table(world.corrected)
    assert file.manifest.device.name == TARGET
    known = pq.read_table(world.files.source)
    tiers = tiers_of(file)
    assert tiers["measured"] == FEW
    # A layer measured on both is once in the table.
    assert tiers["measured"] + tiers["transferred"] < known.num_rows + FEW
    keys = file.rows.select(
        ["class_id", "experts", "top_k", "ep_size", "tp_size", "distribution", "config", "tokens"]
    )
    assert keys.group_by(keys.column_names).aggregate([]).num_rows == keys.num_rows
    measured = file.rows.filter(pc.equal(file.rows["tier"], "measured"))
    read_us = np.sort(pq.read_table(world.files.few)["latency"].to_numpy() * 1e3)
    assert np.sort(measured["latency_us_p50"].to_numpy()) == pytest.approx(read_us)
    assert [source.name for source in file.manifest.sources] == ["source", "few"]
    figures = world.said["validation"]["transfer"]
    errors = figures["left_out"]["latency"]["all"]
    assert figures["points"] == FEW
    assert errors["costprof"]["mape"] < 0.5 * errors["source as it is"]["mape"]
    assert "coverage_90" in errors["costprof"]
    assert "source x rooflines" in run("table", "show", world.corrected)


def test_a_target_measured_throughout_leaves_no_row_to_carry(world: World, tmp_path: Path) -> None:
    out, whole = tmp_path / "t.parquet", tmp_path / "whole"
    run("ingest", "--format", "aiconfigurator", world.files.target, "--out", whole)
    run("fit", whole, "--from", world.source, "--out", out)
    file = read_table(out)
    assert tiers_of(file) == {"measured": pq.read_table(world.files.target).num_rows}
    assert file.manifest.validation["transfer"]["half_width_90"] is None


def test_what_cannot_be_carried_is_refused_in_one_line(world: World, tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"

    def said(*arguments: str | Path) -> str:
        return refused("fit", *arguments, "--out", out)

    carry: tuple[str | Path, ...] = ("--from", world.source)
    assert "'H300' is unknown" in said(*carry, "--device", "H300")
    assert "no.toml cannot be read" in said(*carry, "--device", tmp_path / "no.toml")
    assert "there is nothing to carry" in said(*carry, "--device", "H200")
    assert "there is nothing to carry" in said(world.source, *carry)
    assert "neither a dataset" in said(*carry)
    assert "2 devices" in said("--from", world.both, "--device", "B200")
    assert f"{FEW} layers" in said("--from", world.few, "--device", "H200")
    assert "none of NVIDIA H100" in said(world.few, *carry, "--device", "H100")
    assert "2 devices" in said(world.both, *carry)
    assert "without --from" in said(world.few, "--device", "H200")
    assert "no dataset" in said()
    assert "there is no folder" in said("--from", tmp_path / "x", "--device", "B200")
    assert "2 devices" in said(world.both)
    assert not out.exists()


def test_the_split_by_device_tells_errors_without_and_with_layers_given(
    world: World, tmp_path: Path
) -> None:
    frame = tmp_path / "frame.parquet"
    split = ("--split", "device:h200,B200")
    said = json.loads(run("evaluate", world.both, *split, "--out", frame, "--json"))
    layers = public_table().num_rows
    assert {name: each["layers"] for name, each in said["given"].items()} == {
        "0": layers,
        "200": layers - 200,
    }
    assert pq.read_table(frame).num_rows == 2 * layers - 200
    for given in said["given"].values():
        errors = given["latency"]["all"]
        assert {"costprof", "source as it is", "source x rooflines"} <= set(errors)
        assert errors["costprof"]["mape"] < 0.6 * errors["source as it is"]["mape"]
        assert "not measured on the source" in given["latency"]
        assert "constant TDP x true latency" in given["energy"]["all"]
    without, with_few = (
        said["given"][name]["latency"]["all"]["costprof"]["mape"] for name in ("0", "200")
    )
    assert with_few < without


def test_each_device_may_have_a_dataset_of_its_own(world: World) -> None:
    shown = run("evaluate", world.source, world.few, "--split", "device:H200,B200")
    assert "30 chosen layers of the target given" in shown
    assert "source x rooflines" in shown
    again = refused("evaluate", world.both, world.few, "--split", "device:H200,B200")
    assert "they would count twice" in again
    assert "with 2 datasets" in refused("evaluate", world.source, world.few, "--split", "token")


@pytest.mark.parametrize(
    ("split", "fact"),
    [
        ("device", "names no two devices"),
        ("device:H200", "names no two devices"),
        ("device:H200,A100", "no layer is of A100"),
        ("device:H200,nvidia", "nvidia could be NVIDIA B200, NVIDIA H200"),
        ("device:H200,h200", "both names are of"),
        ("token", "measured on 2 devices"),
    ],
)
def test_splits_of_no_two_devices_are_refused(world: World, split: str, fact: str) -> None:
    assert fact in refused("evaluate", world.both, "--split", split)


def test_a_device_is_called_by_a_word_of_its_name(world: World) -> None:
    for name in ("h100", "H100 SXM5", "NVIDIA H100 80GB HBM3"):
        device, spec = named_device(name)
        assert (device.name, spec.name) == ("NVIDIA H100 80GB HBM3", "H100 SXM5 80GB")
    own, spec = named_device(str(world.own_spec))
    assert own.name == spec.name == "Own 1"
    with pytest.raises(CostprofError, match="could be any of"):
        named_device("80GB")


@pytest.mark.parametrize("wrong", ["memory_bytes_per_s = -1", 'launch_us = "x"', "kind = 1"])
def test_a_spec_file_that_says_nonsense_is_refused(
    world: World, tmp_path: Path, wrong: str
) -> None:
    key = wrong.split(" ")[0]
    lines = world.own_spec.read_text(encoding="utf-8").splitlines()
    changed = [wrong if line.startswith(f"{key} ") else line for line in lines]
    assert changed != lines
    path = tmp_path / "wrong.toml"
    path.write_text("\n".join(changed), encoding="utf-8")
    with pytest.raises(CostprofError, match="cannot be read as a device's spec"):
        named_device(str(path))


def test_a_transferred_table_prices_experts_that_a_runtime_can_route_by(
    world: World, tmp_path: Path
) -> None:
    out = tmp_path / "moe.parquet"
    shown = run("table", "predict", world.corrected, "--preset", "OLMoE-1B-7B", "--out", out)
    assert "all transferred" in shown
    file = read_table(out)
    assert file.manifest.device.name == TARGET
    assert tiers_of(file) == {"transferred": file.rows.num_rows}
    assert any("carried from" in note for note in file.manifest.notes)
    table = CostTable(file.rows, file.manifest)
    few, many = (
        float(table.layer_cost(torch.full((64,), tokens)).latency_us) for tokens in (1, 64)
    )
    assert 0.0 < few < many
