"""A table corrected by what a machine was seen to do."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from costprof.core.errors import InputError
from costprof.core.expert import ExpertClass
from costprof.costmodel.fit import fit_dataset
from costprof.costmodel.manifest import Composition, Manifest
from costprof.costmodel.observation import Observation
from costprof.costmodel.rows import TableRow, rows_table
from costprof.costmodel.table import CostTable
from costprof.costmodel.table_calibration import CALIBRATIONS
from costprof.costmodel.tablefile import read_table, write_table

World = Any

DENSE = ExpertClass(d_model=256, d_ff=512, dtype="float32")
TOKENS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
SLOWER = 1.12
E = 8


def slower(world: World, **other: float) -> Any:
    """The device of `world()` with everything 12 % slower."""
    made = world(**other)
    return dataclasses.replace(
        made,
        launch_us=made.launch_us * SLOWER,
        layer_base_us=made.layer_base_us * SLOWER,
        peak_flops={kind: each / SLOWER for kind, each in made.peak_flops.items()},
        bytes_per_s={state: each / SLOWER for state, each in made.bytes_per_s.items()},
    )


def some_counts(seed: int, how_many: int) -> list[tuple[int, ...]]:
    draw = random.Random(seed)
    return [tuple(draw.choice((0, 1, 2, 5, 11, 30)) for _ in range(E)) for _ in range(how_many)]


@pytest.fixture
def fitted(world: World, dataset: Callable[..., Path]) -> CostTable:
    """A table of the device, fitted to noisy measurements of experts and layers."""
    made = world(noise=0.02)
    rows = [made.row(DENSE, n) for n in TOKENS]
    rows += [made.row(DENSE, sum(c), op="layer", counts=c) for c in some_counts(1, 9)]
    described = {
        "schema_version": 1,
        "name": "known sweep",
        "device": {"kind": "cpu", "name": "known CPU", "units": 4},
        "software": {},
        "moes": [{"name": "known", "top_k": 2, "class_of_expert": [rows[0]["class_id"]] * E}],
    }
    found = fit_dataset(dataset(rows, described))
    return CostTable(found.rows, found.manifest)


def layer_error(table: CostTable, truth: Any) -> float:
    """Mean |predicted / true - 1| over layers of the device `truth`."""
    counts = some_counts(2, 40)
    true = [truth.row(DENSE, sum(c), op="layer", counts=c)["latency_us_p50"] for c in counts]
    predicted = table.layer_cost(torch.tensor(counts)).latency_us
    return float(np.abs(predicted.numpy() / np.array(true) - 1.0).mean())


def test_five_layers_of_a_slower_machine_bring_its_error_down(
    fitted: CostTable, world: World
) -> None:
    machine, seen = slower(world), slower(world, noise=0.03, seed=5)
    observations = [
        Observation(
            counts=counts,
            latency_us=seen.row(DENSE, sum(counts), op="layer", counts=counts)["latency_us_p50"],
        )
        for counts in some_counts(3, 5)
    ]
    before = layer_error(fitted, machine)
    corrected = fitted.calibrated(observations)
    assert before > 0.09
    assert layer_error(corrected, machine) < 0.35 * before
    # One alone is believed in part, and none not at all.
    assert layer_error(corrected, machine) < layer_error(
        fitted.calibrated(observations[:1]), machine
    )
    assert fitted.calibrated([]) is fitted
    assert layer_error(fitted, machine) == before


def test_experts_the_dense_lookup_and_expected_layers_move_alike(
    fitted: CostTable, world: World
) -> None:
    machine = slower(world)
    corrected = fitted.calibrated(
        [
            Observation(expert=0, tokens=n, latency_us=machine.latency_us(DENSE, "cold", n))
            for n in (1, 4, 8, 24, 48)
        ]
    )
    factor = corrected.cost(0, 5).latency_us / fitted.cost(0, 5).latency_us
    assert factor == pytest.approx(SLOWER, rel=0.02)
    counts = torch.tensor(some_counts(4, 20))
    for one, other in (
        (corrected.layer_cost(counts), fitted.layer_cost(counts)),
        (
            corrected.expected_layer_cost(counts + 0.5),
            fitted.expected_layer_cost(counts + 0.5),
        ),
    ):
        torch.testing.assert_close(one.latency_us, factor * other.latency_us)
        torch.testing.assert_close(one.energy_mj, other.energy_mj)
    cost, old = corrected.cost(0, 8), fitted.cost(0, 8)
    assert cost.latency_us_p95 / cost.latency_us_p05 > old.latency_us_p95 / old.latency_us_p05
    assert cost.energy_mj_p95 / cost.energy_mj_p05 > old.energy_mj_p95 / old.energy_mj_p05
    assert [corrected.cost(0, n).tier for n in (4, 5, 900)] == [
        *("measured", "interpolated", "extrapolated"),
    ]
    assert (cost.bytes, cost.flops) == (old.bytes, old.flops)


@pytest.fixture
def four(rows: list[TableRow], make_manifest: Callable[..., Manifest]) -> CostTable:
    """Experts large, small, small, large; 5 W of 20 W of each call are active."""
    priced = [
        dataclasses.replace(row, energy_mj=tuple(5e-3 * us for us in row.latency_us))
        for row in rows
    ]
    parts = Composition(base_us=7.0, base_mj=0.03)
    bases = {priced[0].class_id: parts, priced[-1].class_id: parts}
    return CostTable(rows_table(priced), make_manifest(bases))


def observed(table: CostTable, expert: int, factor: float, energy: float | None) -> Observation:
    cost = table.cost(expert, 8)
    return Observation(
        expert=expert,
        tokens=8,
        latency_us=factor * cost.latency_us,
        energy_mj=None if energy is None else energy * cost.energy_mj,
    )


def test_classes_have_factors_of_their_own(four: CostTable) -> None:
    seen = [observed(four, 0, 1.5, None)] * 20 + [observed(four, 1, 1.0, None)] * 20
    corrected = four.calibrated(seen)
    assert corrected.cost(3, 4).latency_us == pytest.approx(1.5 * 56.0, rel=0.03)
    assert corrected.cost(2, 4).latency_us == pytest.approx(14.0, rel=0.03)


def test_a_layer_of_several_classes_speaks_of_none_alone(four: CostTable) -> None:
    predicted = four.layer_cost(torch.tensor([4, 4, 0, 0])).latency_us.item()
    seen = Observation(counts=torch.tensor([4, 4, 0, 0]), latency_us=1.2 * predicted)  # type: ignore[arg-type]
    assert seen.counts == (4, 4, 0, 0)
    corrected = four.calibrated([seen] * 9)
    moved = [corrected.cost(e, 8).latency_us / four.cost(e, 8).latency_us for e in range(4)]
    assert moved == pytest.approx([moved[0]] * 4)
    assert moved[0] == pytest.approx(1.2, rel=0.02)
    empty = torch.zeros(4, dtype=torch.int64)
    assert corrected.layer_cost(empty).latency_us.item() == pytest.approx(7.0 * moved[0])


def test_power_and_heat_follow_energy_over_latency(four: CostTable) -> None:
    corrected = four.calibrated([observed(four, e, 1.25, 0.8) for e in (0, 1)] * 40)
    cost, old = corrected.cost(0, 8), four.cost(0, 8)
    energy, latency = cost.energy_mj / old.energy_mj, cost.latency_us / old.latency_us
    assert (energy, latency) == pytest.approx((0.8, 1.25), rel=0.02)
    assert cost.power_w == pytest.approx(15.0 + 5.0 * energy / latency)
    assert cost.temp_rise_c == pytest.approx(0.5 * energy)


def test_another_power_limit_than_the_tables_counts_less(
    rows: list[TableRow], make_manifest: Callable[..., Manifest], four: CostTable
) -> None:
    gpu = dataclasses.replace(four.manifest.device, power_limit_w=700.0)
    table = CostTable(rows_table(rows), make_manifest(device=gpu))
    seen = [observed(table, 0, 1.0, None)] * 4 + [
        dataclasses.replace(observed(table, 0, 1.3, None), power_limit_w=350.0)
    ] * 6
    unknown = [dataclasses.replace(each, power_limit_w=None) for each in seen]
    told, plain = (table.calibrated(each).cost(0, 8).latency_us for each in (seen, unknown))
    assert told / table.cost(0, 8).latency_us < 1.05 < plain / table.cost(0, 8).latency_us


def test_the_file_says_what_was_done(fitted: CostTable, tmp_path: Path) -> None:
    sealed = write_table(tmp_path / "a.parquet", fitted.rows, fitted.manifest)
    table = CostTable(read_table(tmp_path / "a.parquet").rows, sealed)
    seen = [observed(table, 0, SLOWER, None)] * 5
    corrected = table.calibrated(seen)
    assert corrected.manifest.content_hash == ""
    again = write_table(tmp_path / "b.parquet", corrected.rows, corrected.manifest)
    assert again.content_hash not in ("", sealed.content_hash)
    assert f"calibrated from 5 observations (table {sealed.content_hash[:8]}): " in again.notes[-1]
    assert "energies as they were, none was observed; rows of tier measured" in again.notes[-1]
    (done,) = again.parameters[CALIBRATIONS]
    assert (done["of"], done["energy_observations"]) == (sealed.content_hash, 0)
    read = read_table(tmp_path / "b.parquet")
    assert read.rows["tier"].to_pylist() == fitted.rows["tier"].to_pylist()
    reopened = CostTable(read.rows, read.manifest)
    assert reopened.cost(0, 7) == corrected.cost(0, 7)
    twice = reopened.calibrated(seen)
    assert len(twice.manifest.parameters[CALIBRATIONS]) == 2
    assert twice.manifest.parameters[CALIBRATIONS][1]["of"] == again.content_hash


def test_rows_without_an_energy_or_with_none_at_all_stay_so(
    rows: list[TableRow], make_manifest: Callable[..., Manifest], four: CostTable
) -> None:
    layer = dataclasses.replace(
        rows[0], op="layer", energy_mj=(math.nan,) * 3, power_w=None, temp_rise_c=None
    )
    idle = dataclasses.replace(rows[1], energy_mj=(0.0, 0.0, 0.0))
    table = CostTable(rows_table([layer, rows[0], idle, *rows[2:]]), make_manifest())
    made = table.calibrated([observed(four, 1, 1.2, None)] * 9).rows.to_pylist()
    (found,) = (row for row in made if row["op"] == "layer")
    assert found["energy_mj_p50"] is None
    assert found["power_w"] is None
    assert found["latency_us_p50"] == pytest.approx(1.2 * 11.0, rel=0.03)
    (free,) = (row for row in made if row["energy_mj_p50"] == 0.0)
    assert free["power_w"] == 20.0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"latency_us": 5.0}, "names no call"),
        ({"latency_us": 5.0, "expert": 1}, "names no call"),
        ({"latency_us": 5.0, "counts": [1], "expert": 1, "tokens": 2}, "of counts and of an exp"),
        ({"latency_us": 5.0, "counts": [1, 0, 0, 0], "tokens": 2}, "of counts and of"),
        ({"latency_us": -5.0, "expert": 1, "tokens": 2}, "has latency_us -5.0, not a positive"),
        ({"latency_us": math.nan, "expert": 1, "tokens": 2}, "has latency_us nan"),
        ({"latency_us": 5.0, "expert": 1, "tokens": 2, "energy_mj": 0.0}, "has energy_mj 0.0"),
        ({"latency_us": 5.0, "expert": 1, "tokens": 2, "temperature_c": math.inf}, "temperature"),
        ({"latency_us": 5.0, "expert": 1, "tokens": 2.5}, "not a whole number"),
        ({"latency_us": 5.0, "expert": 1, "tokens": 0}, "of a call without tokens"),
        ({"latency_us": 5.0, "counts": [0, 0, 0, 0]}, "of a call without tokens"),
        ({"latency_us": 5.0, "counts": [3, -1, 0, 0]}, "a negative count"),
        ({"latency_us": 5.0, "counts": [1, 2, 3]}, r"counts have shape \(3,\)"),
        ({"latency_us": 5.0, "expert": 4, "tokens": 1}, "expert 4 of 4"),
    ],
)
def test_what_is_no_observation_of_this_moe_is_refused(
    four: CostTable, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        four.calibrated([Observation(**fields)])
