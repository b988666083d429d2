"""Prices carried from a measured device to one that was hardly or never measured."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from public_layers import SHAPES
from threadpoolctl import threadpool_limits
from two_devices import FASTER, A, B, layers, measured_on

from costprof.core.device import DeviceFingerprint
from costprof.core.errors import TableError
from costprof.costmodel.devices import DeviceSpec, spec_for
from costprof.costmodel.grouped import serialise, serialise_transfer
from costprof.costmodel.grouped.carry import (
    Source,
    carried_latency_us,
    carry,
    distance,
)
from costprof.costmodel.grouped.fit import fit_grouped
from costprof.costmodel.grouped.fit_transfer import fit_transfer
from costprof.costmodel.grouped.model import LayerPrediction, Measured
from costprof.costmodel.grouped.points import LayerPoints
from costprof.costmodel.grouped.price_transfer import price_transferred
from costprof.costmodel.grouped.transfer import TransferModel, fresh
from costprof.costmodel.grouped.transfer_choice import choose_targets
from costprof.costmodel.grouped.work import layer_work

DATA = Path(__file__).resolve().parents[3] / "../shared/data/silicon"

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """A source, layers to price on the target, what they take there, and what reading them says."""

    source: Source
    points: LayerPoints
    true_us: Array
    true_w: Array
    readings: Measured


def fitted_source(measured: Measured, spec: DeviceSpec) -> Source:
    """Fit on one thread: several of a small fit wait for each other most of the time."""
    with threadpool_limits(1):
        return Source(fit_grouped(measured, spec).model, spec, measured)


@pytest.fixture(scope="module")
def world() -> World:
    """Return a world whose fourth shape the source did not measure."""
    known = measured_on("A", layers(SHAPES[:3]))
    points = layers()
    true = measured_on("B", points, noise=0.0)
    source = fitted_source(known, A)
    return World(source, points, true.latency_us, true.power_w, measured_on("B", points, seed=1))


@pytest.fixture(scope="module")
def known(world: World) -> npt.NDArray[np.bool_]:
    """Tell the layers whose shape the source measured."""
    assert world.source.measured is not None
    return np.isin(world.points.shape, world.source.measured.points.shape)


def mape(predicted: Array, true: Array) -> float:
    return float(100.0 * np.abs(predicted / true - 1.0).mean())


def covered(found: LayerPrediction, true_us: Array) -> float:
    low, _, high = found.latency_us
    return float(((low <= true_us) & (true_us <= high)).mean())


def test_only_the_part_that_waits_for_memory_becomes_faster() -> None:
    work = layer_work(layers())
    bound_us = 1e6 * work.weight_bytes / A.memory_bytes_per_s
    assert carried_latency_us(work, bound_us, A, B) == pytest.approx(bound_us / FASTER)
    # Twenty times as long: a twentieth of the time is memory's, and only that is saved in part.
    saved = 20.0 * bound_us - carried_latency_us(work, 20.0 * bound_us, A, B)
    assert saved == pytest.approx(bound_us * (1.0 - 1.0 / FASTER))
    # A reading below what the bytes need does not become negative time.
    assert carried_latency_us(work, bound_us / 9.0, A, B) == pytest.approx(bound_us / 9.0 / FASTER)
    assert carried_latency_us(work, bound_us, A, A) == pytest.approx(bound_us)


def test_a_higher_ceiling_shortens_what_operations_take() -> None:
    doubled = dataclasses.replace(A, peak_flops={k: 2.0 * v for k, v in A.peak_flops.items()})
    work = layer_work(layers())
    weights_us = 1e6 * work.weight_bytes / A.memory_bytes_per_s
    operations_us = 1e6 * work.flops / max(A.peak_flops.values())
    whole_us = 3.0 * (weights_us + operations_us)
    carried = carried_latency_us(work, whole_us, A, doubled)
    assert whole_us - carried == pytest.approx(operations_us / 2.0)


def test_distance_is_the_largest_ratio_of_the_datasheets() -> None:
    assert distance(A, B) == pytest.approx(np.log(FASTER)) == distance(B, A)
    assert 0.0 < distance(A, A) < 0.1
    weak = dataclasses.replace(A, power_limit_w=A.power_limit_w / 2.0)
    assert distance(A, weak) == pytest.approx(np.log(2.0))


def test_without_a_measurement_carrying_beats_the_source(world: World, known: Array) -> None:
    found = fit_transfer(world.source, B).predict(world.points)
    at = np.flatnonzero(known)
    as_it_is = measured_on("A", world.points).latency_us
    assert mape(as_it_is[at], world.true_us[at]) > 10.0
    assert mape(found.latency_us[1][at], world.true_us[at]) < 4.0
    assert covered(found, world.true_us) > 0.87
    assert found.known_group.tolist() == known.tolist()


def test_few_measurements_improve_it(world: World, known: Array) -> None:
    at = np.flatnonzero(known)
    none = fit_transfer(world.source, B)
    carried = carry(world.source, world.points, B)
    chosen = choose_targets(carried.take(at), 40, none.correction.scales)
    few = fit_transfer(world.source, B, world.readings.take(at[chosen]))
    rest = np.setdiff1d(at, at[chosen])
    before, after = none.predict(world.points), few.predict(world.points)
    error = mape(before.latency_us[1][rest], world.true_us[rest])
    assert mape(after.latency_us[1][rest], world.true_us[rest]) < 0.6 * error
    assert covered(after, world.true_us) > 0.87
    width = np.log(after.latency_us[2] / after.latency_us[0])
    assert width.mean() < 0.8 * np.log(before.latency_us[2] / before.latency_us[0]).mean()


def test_what_the_source_did_not_measure_is_priced_with_more_doubt(
    world: World, known: Array
) -> None:
    found = fit_transfer(world.source, B).predict(world.points)
    width = np.log(found.latency_us[2] / found.latency_us[0])
    assert np.isfinite(found.latency_us[1]).all()
    assert width[~known].mean() > 1.2 * width[known].mean()


def test_a_method_the_source_never_saw_is_priced_as_the_likest(world: World) -> None:
    other = dataclasses.replace(
        world.points, framework=np.full(len(world.points), "vllm 1.0.0"), kernel=world.points.kernel
    )
    model = fit_transfer(world.source, B)
    first, second = model.predict(world.points), model.predict(other)
    assert second.latency_us[1] == pytest.approx(first.latency_us[1])
    # Two versions of a kernel can differ by a factor of three: an interval must not hide that.
    assert (second.latency_us[2] > 1.5 * second.latency_us[1]).all()


def test_measurements_tell_what_a_method_the_source_never_saw_does(world: World) -> None:
    other = dataclasses.replace(world.points, framework=np.full(len(world.points), "vllm 1.0.0"))
    twice = dataclasses.replace(
        world.readings, points=other, latency_us=2.0 * world.readings.latency_us
    )
    chosen = np.arange(0, len(other), 9)
    found = fit_transfer(world.source, B, twice.take(chosen)).predict(other)
    assert mape(found.latency_us[1], 2.0 * world.true_us) < 6.0
    assert covered(found, 2.0 * world.true_us) > 0.85


def test_doubt_grows_with_the_distance(world: World) -> None:
    def width(target: DeviceSpec) -> float:
        low, _, high = fit_transfer(world.source, target).predict(world.points).latency_us
        return float(np.log(high / low).mean())

    much = dataclasses.replace(A, memory_bytes_per_s=3.0 * A.memory_bytes_per_s)
    assert width(A) < width(B) < width(much)


def test_power_stays_under_the_limit_and_energy_is_power_times_time(world: World) -> None:
    found = fit_transfer(world.source, B).predict(world.points)
    assert found.power_w.max() <= B.power_limit_w
    assert found.energy_mj[1] == pytest.approx(found.power_w * found.latency_us[1] * 1e-3)
    assert mape(found.power_w, world.true_w) < 8.0
    assert (found.energy_mj[0] < found.energy_mj[1]).all()


def test_a_few_power_readings_shift_all_power(world: World) -> None:
    hungry = dataclasses.replace(world.readings, power_w=1.1 * world.readings.power_w)
    chosen = np.arange(0, len(world.points), 8)
    none = fit_transfer(world.source, B).predict(world.points)
    some = fit_transfer(world.source, B, hungry.take(chosen)).predict(world.points)
    free = none.power_w < 0.8 * B.power_limit_w
    ratio = np.median(some.power_w[free] / none.power_w[free])
    assert ratio == pytest.approx(np.median(hungry.power_w / none.power_w), abs=0.03)
    assert ratio > 1.05


def test_energy_is_unknown_where_the_source_knows_no_power(world: World) -> None:
    parts = {
        name: dataclasses.replace(part, power=None)
        for name, part in world.source.model.parts.items()
    }
    model = dataclasses.replace(world.source.model, parts=parts)
    source = dataclasses.replace(world.source, model=model)
    found = fit_transfer(source, B, world.readings.take(np.arange(40))).predict(world.points)
    assert np.isnan(found.energy_mj[1]).all()
    assert np.isfinite(found.latency_us[1]).all()


@pytest.mark.parametrize("given", [0, 40])
def test_bytes_hold_the_whole_model(world: World, given: int) -> None:
    model = fit_transfer(world.source, B, world.readings.take(np.arange(given)))
    data = serialise_transfer.to_bytes(model)
    assert serialise_transfer.to_bytes(model) == data
    assert serialise_transfer.is_transfer(data)
    read = serialise_transfer.from_bytes(data)
    assert read.target == B
    first, second = model.predict(world.points), read.predict(world.points)
    for name in ("latency_us", "energy_mj"):
        for a, b in zip(getattr(first, name), getattr(second, name), strict=True):
            assert a == pytest.approx(b, rel=1e-12)


def test_a_source_without_its_layers_is_carried_by_its_model(world: World) -> None:
    bare = TransferModel(dataclasses.replace(world.source, measured=None), B, fresh(A, B))
    read = serialise_transfer.from_bytes(serialise_transfer.to_bytes(bare))
    found = read.predict(world.points)
    assert not found.known_group.any()
    assert found.latency_us[1] == pytest.approx(bare.predict(world.points).latency_us[1])


@pytest.mark.parametrize("given", [0, 40])
def test_what_was_measured_on_the_target_costs_what_was_read(world: World, given: int) -> None:
    readings = world.readings.take(np.arange(given))
    found = price_transferred(world.points, fit_transfer(world.source, B, readings), readings)
    assert (found.tier[:given] == "measured").all()
    assert (found.tier[given:] == "transferred").all()
    assert found.prediction.latency_us[1][:given] == pytest.approx(readings.latency_us)
    assert np.isfinite(found.prediction.latency_us[1]).all()


def test_all_measured_on_the_target_leaves_nothing_to_transfer(world: World) -> None:
    model = fit_transfer(world.source, B)
    found = price_transferred(world.points, model, world.readings)
    assert set(found.tier) == {"measured"}


def test_damaged_bytes_are_refused(world: World) -> None:
    data = serialise_transfer.to_bytes(fit_transfer(world.source, B))
    with pytest.raises(TableError, match="cannot be read"):
        serialise_transfer.from_bytes(data[: len(data) // 2])
    other = serialise.to_bytes(world.source.model)
    assert not serialise_transfer.is_transfer(other)
    assert not serialise_transfer.is_transfer(b"no model")
    with pytest.raises(TableError, match="another version"):
        serialise_transfer.from_bytes(other)


def public(name: str, hidden: int) -> Measured:
    """Return the public bfloat16 layers of one width, few token counts, without the large ranks."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from costprof.costmodel.grouped.public import public_points

    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{name} is not beside this checkout")
    wanted = [
        *(("hidden_size", "=", hidden), ("moe_dtype", "=", "bfloat16")),
        *(("moe_ep_size", "in", [1, 4, 16]), ("moe_tp_size", "in", [1, 4])),
        ("num_tokens", "in", [1, 16, 64, 256, 1024, 4096]),
    ]
    table = pq.read_table(path, filters=wanted)
    latency_us = pc.multiply(table["latency"], 1e3).to_numpy()
    return Measured(public_points(table), latency_us, np.full(table.num_rows, np.nan))


def test_real_h100_prices_hold_on_an_h200() -> None:
    hidden = 4096
    source = public("h100_moe_latency_vllm-0.24.parquet", hidden)
    target = public("h200_moe_latency_vllm-0.24.parquet", hidden)
    # Rows of both files in one order, those of both alone.
    tokens = [np.char.add(m.points.curve, m.points.tokens.astype(str)) for m in (source, target)]
    _, first, second = np.intersect1d(*tokens, return_indices=True)
    source, target = source.take(first), target.take(second)
    assert len(first) > 200
    h100, h200 = (
        spec_for(DeviceFingerprint(kind="gpu", name=name))
        for name in ("NVIDIA H100 80GB HBM3", "NVIDIA H200")
    )
    model = fitted_source(source, h100)
    start, carried = fresh(h100, h200), carry(model, target.points, h200)
    none = fit_transfer(model, h200).predict(target.points)
    assert mape(source.latency_us, target.latency_us) > 15.0
    assert mape(none.latency_us[1], target.latency_us) < 8.0
    assert covered(none, target.latency_us) > 0.82
    chosen = choose_targets(carried, 60, start.scales)
    few = fit_transfer(model, h200, target.take(chosen)).predict(target.points)
    rest = np.setdiff1d(np.arange(len(first)), chosen)
    after = mape(few.latency_us[1][rest], target.latency_us[rest])
    assert after < 0.9 * mape(none.latency_us[1][rest], target.latency_us[rest])
