"""Fitting datasets of a device whose costs are known."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from costprof.core.errors import DatasetError
from costprof.core.expert import ExpertClass
from costprof.costmodel.fit import FittedTable, fit_dataset
from costprof.costmodel.measurements import measured_curves
from costprof.costmodel.predict import LatencyModel
from costprof.costmodel.residual import fit_own
from costprof.costmodel.roofline import fit_roofline
from costprof.costmodel.table import CostTable

DENSE = ExpertClass(d_model=256, d_ff=512, dtype="float32")
WIDE = ExpertClass(d_model=256, d_ff=768, dtype="float32")
PACKED = ExpertClass(d_model=256, d_ff=512, dtype="float32", quantisation="int4")
TOKENS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)

World = Any
Dataset = Callable[..., Path]


def expert_rows(made: World, tokens: tuple[int, ...] = TOKENS) -> list[dict[str, Any]]:
    rows = [made.row(expert, n) for expert in (DENSE, WIDE, PACKED) for n in tokens]
    return rows + [made.row(DENSE, n, cache_state="warm") for n in (1, 4, 32)]


def layer_rows(made: World, how_many: int = 9) -> list[dict[str, Any]]:
    draw = random.Random(1)
    shapes = [tuple(draw.choice((0, 0, 1, 2, 5, 11)) for _ in range(8)) for _ in range(how_many)]
    return [made.row(DENSE, sum(counts), op="layer", counts=counts) for counts in shapes]


def fitted_moe(rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    dense = next(row["class_id"] for row in rows if row["op"] == "expert")
    return {
        "schema_version": 1,
        "name": "known sweep",
        "device": {"kind": "cpu", "name": "known CPU", "units": 4},
        "software": {"torch": "2.13.0"},
        "moes": [{"name": "known", "top_k": 2, "class_of_expert": [dense] * 8}],
        **changes,
    }


def price(fitted: FittedTable, expert: ExpertClass, cache: str = "cold") -> dict[int, Any]:
    rows = [
        row
        for row in fitted.rows.to_pylist()
        if (row["d_ff"], row["quantisation"], row["cache_state"])
        == (expert.d_ff, expert.quantisation, cache)
    ]
    return {row["tokens"]: row for row in rows}


def test_known_ceilings_are_found_in_noise(world: World) -> None:
    made = world(noise=0.02)
    found = fit_roofline(measured_curves(expert_rows(made)))
    assert found.launch_us == pytest.approx(5.0, rel=0.5)
    assert found.peak_flops["float32/none"] == pytest.approx(50e9, rel=0.05)
    assert found.peak_flops["float32/int4"] == pytest.approx(20e9, rel=0.05)
    assert found.bytes_per_s["cold"] == pytest.approx(8e9, rel=0.05)


def test_ceilings_withstand_a_few_wild_points(world: World) -> None:
    rows = expert_rows(world(noise=0.01))
    for row in rows[3::12]:
        for name in ("latency_us_p05", "latency_us_p50", "latency_us_p95"):
            row[name] *= 5
    found = fit_roofline(measured_curves(rows))
    assert found.peak_flops["float32/none"] == pytest.approx(50e9, rel=0.08)
    assert found.bytes_per_s["cold"] == pytest.approx(8e9, rel=0.08)


@pytest.fixture(scope="module")
def fitted(
    world: World, write_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> FittedTable:
    made = world(wiggle=0.15, noise=0.02)
    rows = expert_rows(made) + layer_rows(made)
    return fit_dataset(write_dataset(tmp_path_factory.mktemp("known"), rows, fitted_moe(rows)))


def test_left_out_points_are_predicted_within_the_stated_interval(fitted: FittedTable) -> None:
    interior = fitted.manifest.validation["latency"]["interior"]
    assert interior["model"]["points"] == 30
    assert interior["model"]["mape"] < 6.0
    assert interior["model"]["mape"] < 0.6 * interior["roofline"]["mape"]
    assert interior["model"]["coverage_90"] >= 80.0
    assert interior["model"]["width_90"] < 40.0


def test_unmeasured_tokens_are_priced_near_the_truth(fitted: FittedTable, world: World) -> None:
    truth = world(wiggle=0.15)
    rows = price(fitted, DENSE)
    inside = [n for n, row in rows.items() if row["tier"] == "interpolated"]
    assert inside == []
    held = price(fitted, DENSE, "warm")
    assert [n for n, row in held.items() if row["tier"] == "interpolated"] == [
        2, 3, 6, 8, 12, 16, 24,
    ]  # fmt: skip
    beyond = [n for n, row in rows.items() if row["tier"] == "extrapolated"]
    assert beyond == [96, 128, 192, 256]
    for n in beyond:
        assert rows[n]["latency_us_p50"] == pytest.approx(
            truth.latency_us(DENSE, "cold", n), rel=0.35
        )


def test_measured_tokens_keep_what_was_measured(fitted: FittedTable, world: World) -> None:
    measured = world(wiggle=0.15, noise=0.02).row(DENSE, 6)
    row = price(fitted, DENSE)[6]
    assert row["tier"] == "measured"
    for name in ("latency_us_p05", "latency_us_p50", "latency_us_p95"):
        assert row[name] == measured[name]
    assert row["energy_mj_p50"] == pytest.approx(measured["energy_active_mj"])
    assert row["power_w"] == pytest.approx(14.0)
    assert row["temp_rise_c"] == pytest.approx(measured["temp_rise_c"])
    assert row["energy_mj_p05"] < 0.5 * row["energy_mj_p50"] * 1.01
    assert row["energy_mj_p95"] > 2.0 * row["energy_mj_p50"] * 0.99


def test_quantiles_are_ordered_and_wider_where_less_is_known(fitted: FittedTable) -> None:
    for row in fitted.rows.to_pylist():
        for name in ("latency_us", "energy_mj"):
            assert 0 < row[f"{name}_p05"] <= row[f"{name}_p50"] <= row[f"{name}_p95"]
    rows = price(fitted, DENSE)
    width = {n: np.log(row["latency_us_p95"] / row["latency_us_p05"]) for n, row in rows.items()}
    assert width[64] < width[96] < width[256]


def test_layer_composition_is_found(fitted: FittedTable) -> None:
    (composition,) = [
        parts
        for class_id, parts in fitted.manifest.compositions.items()
        if class_id == fitted.manifest.moes[0].class_of_expert[0]
    ]
    assert composition.fitted
    assert composition.layers == 9
    assert composition.kernel == "kernels:layer"
    assert composition.latency_scale == pytest.approx(0.8, rel=0.1)
    layers = fitted.manifest.validation["layers"]
    (figures,) = [each for key, each in layers.items() if key in fitted.manifest.compositions][:1]
    assert figures["latency"]["model"]["mape"] < figures["latency"]["sum_of_experts"]["mape"]
    assert composition.latency_mape == figures["latency"]["model"]["mape"]


def test_composition_is_exact_without_noise(world: World, dataset: Dataset) -> None:
    made = world()
    rows = [made.row(DENSE, n) for n in (1, 2, 5, 11)] + layer_rows(made, 4)
    manifest = fit_dataset(dataset(rows, fitted_moe(rows))).manifest
    (composition,) = manifest.compositions.values()
    assert composition.base_us == pytest.approx(40.0)
    assert composition.latency_scale == pytest.approx(0.8)
    assert composition.latency_mape == pytest.approx(0.0, abs=1e-3)


def test_a_layers_slower_tile_configs_do_not_bend_its_composition(
    world: World, dataset: Dataset
) -> None:
    made = world()
    layers = layer_rows(made, 4)
    slower = [
        {**row, "scenario_id": f"{n}", "config": '{"BLOCK_M": 16}'} for n, row in enumerate(layers)
    ]
    for row in slower:
        for name in ("p05", "p50", "p95"):
            row[f"latency_us_{name}"] = 3.0 * row[f"latency_us_{name}"]
    rows = [made.row(DENSE, n) for n in (1, 2, 5, 11)] + slower + layers
    manifest = fit_dataset(dataset(rows, fitted_moe(rows))).manifest
    (composition,) = manifest.compositions.values()
    assert composition.layers == 4
    assert composition.base_us == pytest.approx(40.0)
    assert composition.latency_scale == pytest.approx(0.8)
    assert composition.energy_scale == pytest.approx(0.8)
    assert composition.base_mj == pytest.approx(0.4)


def test_too_few_layers_leave_the_experts_added_up(world: World, dataset: Dataset) -> None:
    made = world()
    rows = [made.row(DENSE, n) for n in (1, 2, 5, 11)] + layer_rows(made, 2)
    manifest = fit_dataset(dataset(rows, fitted_moe(rows))).manifest
    assert manifest.compositions == {}
    (note,) = manifest.notes
    assert note.startswith(f"class {rows[0]['class_id'][:6]}: fewer than 3 layers measured in its")


def test_cold_layers_say_nothing_of_warm_experts(world: World, dataset: Dataset) -> None:
    made = world()
    rows = [
        made.row(DENSE, n, cache_state=state) for state in ("cold", "warm") for n in (1, 2, 5, 11)
    ]
    cold, warm = rows[0]["class_id"], rows[4]["class_id"]
    moe = {"name": "both", "top_k": 2, "class_of_expert": [cold, warm]}
    description = fitted_moe(rows, moes=[moe])
    manifest = fit_dataset(dataset(rows + layer_rows(made), description)).manifest
    assert list(manifest.compositions) == [cold]
    (note,) = manifest.notes
    assert note.startswith(f"class {warm[:6]}: fewer than 3 layers")


ATTENTION = ExpertClass(
    block="attention", d_model=256, dtype="float32", n_heads=4, n_kv_heads=4, head_dim=64,
    context_len=128,
)  # fmt: skip


@pytest.mark.parametrize(
    ("expert", "op", "moes"),
    [(ATTENTION, "attention", ["measured"]), (DENSE, "fc1", []), (PACKED, "pack", [])],
)
def test_datasets_without_whole_experts_are_fitted(
    world: World, dataset: Dataset, expert: ExpertClass, op: str, moes: list[str]
) -> None:
    rows = [world().row(expert, n, op=op) for n in ((1,) if op == "pack" else (1, 4, 16))]
    fitted = fit_dataset(dataset(rows))
    assert [moe.name for moe in fitted.manifest.moes] == moes
    assert set(fitted.rows["op"].to_pylist()) == {op}
    assert fitted.manifest.compositions == {}


@pytest.mark.parametrize(
    "damage",
    [
        {"latency_us_p50": math.inf},
        {"latency_us_p95": math.nan},
        {"latency_us_p05": None},
        {"latency_us_p05": 0.0},
        {"latency_us_p95": 1e-3},
        {"tokens": 0},
        {"config": "{"},
        {"config": "[]"},
        {"op": "layer", "counts": None},
    ],
)
def test_unusable_rows_count_as_failed(
    world: World, dataset: Dataset, damage: dict[str, Any]
) -> None:
    rows = [world().row(DENSE, n) for n in (1, 2, 4, 8)]
    rows[1] = {**rows[1], **damage}
    manifest = fit_dataset(dataset(rows)).manifest
    assert (manifest.sources[0].rows_used, manifest.sources[0].rows_failed) == (3, 1)


def test_mixed_conditions_are_named(world: World, dataset: Dataset) -> None:
    rows = [
        world().row(DENSE, n, num_threads=n, power_limit_w=100.0 * n, driver_version=f"55{n}")
        for n in (1, 2)
    ]
    notes = fit_dataset(dataset(rows)).manifest.notes
    assert "measured under several thread counts (1, 2): prices mix them" in notes
    assert "measured under several power limits in W (100.0, 200.0): prices mix them" in notes
    assert "measured under several drivers (551, 552): prices mix them" in notes


def test_the_table_prices_layers_as_composed(fitted: FittedTable, world: World) -> None:
    import torch

    table = CostTable(fitted.rows, fitted.manifest)
    counts = (4, 0, 0, 12, 1, 1, 3, 0)
    truth = world(wiggle=0.15).row(DENSE, 21, op="layer", counts=counts)["latency_us_p50"]
    assert table.layer_cost(torch.tensor(counts)).latency_us.item() == pytest.approx(
        truth, rel=0.08
    )


def test_fitting_twice_gives_the_same_table(world: World, dataset: Dataset) -> None:
    rows = [world(noise=0.02).row(DENSE, n) for n in TOKENS[:7]]
    folder = dataset(rows, fitted_moe(rows))
    first, again = fit_dataset(folder), fit_dataset(folder)
    assert first.rows.equals(again.rows)
    assert first.manifest == again.manifest


def test_the_manifest_says_what_became_of_the_rows(world: World, dataset: Dataset) -> None:
    made = world()
    rows = [made.row(DENSE, n) for n in TOKENS[:6]]
    rows += [made.row(DENSE, 24, status="noisy")]
    rows += [made.row(DENSE, 32, status="failed", latency_us_p50=None, error="time-out")]
    manifest = fit_dataset(dataset(rows, fitted_moe(rows))).manifest
    (source,) = manifest.sources
    assert (source.name, source.rows_used, source.rows_noisy, source.rows_failed) == (
        "known sweep", 7, 1, 1,
    )  # fmt: skip
    assert len(source.content_hash) == 64
    assert manifest.device.name == "known CPU"
    assert manifest.software == {"torch": "2.13.0", "threads": "1"}
    assert manifest.threads == 1
    assert "/" not in source.name


def test_a_noisy_row_pulls_less_than_a_sound_one(world: World) -> None:
    def predicted(status: str) -> float:
        made = world()
        rows = [made.row(DENSE, n) for n in TOKENS]
        off = next(row for row in rows if row["tokens"] == 8)
        off["status"] = status
        off["latency_us_p50"] *= 1.3
        (curve,) = measured_curves(rows)
        process = fit_own(curve, fit_roofline([curve]))
        latency, _ = LatencyModel(fit_roofline([curve]), process, {curve.key: process}).predict(
            curve, np.array([8.0])
        )
        return float(latency[0]) / made.latency_us(DENSE, "cold", 8)

    assert abs(predicted("noisy") - 1.0) < abs(predicted("ok") - 1.0)


def test_of_two_rows_for_one_scenario_the_sounder_counts(world: World) -> None:
    good, bad = world().row(DENSE, 4), world().row(DENSE, 4, status="noisy", latency_us_p50=1.0)
    (curve,) = measured_curves([bad, good])
    assert curve.p50.tolist() == [good["latency_us_p50"]]


def test_a_dataset_without_moes_gets_one_of_its_classes(world: World, dataset: Dataset) -> None:
    rows = [world().row(expert, n) for expert in (DENSE, PACKED) for n in (1, 2, 4)]
    manifest = fit_dataset(dataset(rows)).manifest
    (moe,) = manifest.moes
    assert (moe.name, len(moe.class_of_expert)) == ("measured", 2)
    assert "no MoE named by the sweep: one expert for each class measured" in manifest.notes
    assert manifest.device.name == "known CPU"


def test_an_moe_whose_experts_failed_is_left_out_and_named(world: World, dataset: Dataset) -> None:
    rows = [world().row(DENSE, n) for n in (1, 2, 4)]
    lost = {"name": "lost", "top_k": 1, "class_of_expert": ["0" * 16]}
    description = fitted_moe(rows)
    description["moes"].append(lost)
    manifest = fit_dataset(dataset(rows, description)).manifest
    assert [moe.name for moe in manifest.moes] == ["known"]
    assert "lost left out: 1 of its classes have no usable row" in manifest.notes


def test_datasets_that_cannot_be_fitted_are_refused(
    world: World, dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match="holds no measurements"):
        fit_dataset(tmp_path / "nothing")
    failed = [world().row(DENSE, n, status="failed", latency_us_p50=None) for n in (1, 2)]
    with pytest.raises(DatasetError, match=r"none of the 2 rows of .* is a usable measurement"):
        fit_dataset(dataset(failed))
    named = {"op": "layer", "distribution": "balanced", "counts": None}
    layers = [world().row(DENSE, n, **named) for n in (1, 2)]
    with pytest.raises(DatasetError, match=r"has 2 layers of a named routing, fewer than 200"):
        fit_dataset(dataset(layers))
    mixed = [world().row(DENSE, 1), world().row(DENSE, 2, device_name="other CPU")]
    with pytest.raises(DatasetError, match=r"measured on 2 devices \(known CPU, other CPU\); one"):
        fit_dataset(dataset(mixed))
    folder = dataset([world().row(DENSE, 1)])
    for text in ("{", "[]", json.dumps({"moes": [{"name": "x"}]}), json.dumps({"device": 3})):
        (folder / "sweep.json").write_text(text)
        with pytest.raises(DatasetError, match=r"sweep.json cannot be read \(\w+\); the dataset"):
            fit_dataset(folder)


def test_one_measurement_makes_a_table(world: World, dataset: Dataset) -> None:
    rows = [world().row(DENSE, 4)]
    fitted = fit_dataset(dataset(rows, fitted_moe(rows)))
    assert fitted.manifest.validation["latency"] == {}
    assert CostTable(fitted.rows, fitted.manifest).cost(0, 4).latency_us == pytest.approx(
        rows[0]["latency_us_p50"]
    )
