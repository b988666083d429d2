"""Energy between token counts: of which source, and how sure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from costprof.core.device import DeviceFingerprint
from costprof.core.expert import ExpertClass
from costprof.costmodel.energy import known_energy, power_curve
from costprof.costmodel.fit import fit_dataset
from costprof.costmodel.measurements import measured_curves
from costprof.costmodel.physics import modelled_energy, spec_for
from costprof.costmodel.validation import Fold, energy_figures

EXPERT = ExpertClass(d_model=256, d_ff=512, dtype="float32")
SPEC = spec_for(DeviceFingerprint(kind="cpu", name="any CPU", units=1))


def curve_of(rows: list[dict[str, Any]]) -> Any:
    (curve,) = measured_curves(rows)
    return curve


def test_constant_power_is_kept_everywhere(world: Any) -> None:
    power = power_curve(curve_of([world().row(EXPERT, n) for n in (2, 8, 32)]), SPEC)
    tokens = np.array([1.0, 2.0, 5.0, 32.0, 100.0])
    np.testing.assert_allclose(power.watts_at(tokens), 10.0)
    np.testing.assert_allclose(power.energy_mj(tokens, np.full(5, 300.0)), 3.0)
    assert power.idle_w == pytest.approx(4.0)
    assert power.source == "modelled"


def test_a_counter_beats_the_model(world: Any) -> None:
    rows = [world().row(EXPERT, n) for n in (1, 2, 4, 8)]
    for row in rows[1:3]:
        row["energy_source"] = "nvml_counter"
        row["energy_active_mj"] *= 3
    curve = curve_of(rows)
    assert known_energy(curve) == ("nvml_counter", [1, 2])
    power = power_curve(curve, SPEC)
    assert power.source == "nvml_counter"
    np.testing.assert_allclose(power.watts_at(np.array([1.0, 8.0])), 30.0)


def test_energy_that_is_not_positive_is_not_known(world: Any) -> None:
    rows = [world().row(EXPERT, n, energy_active_mj=value) for n, value in ((1, 0.0), (2, -1.0))]
    assert known_energy(curve_of(rows)) == (None, [])


def test_without_any_energy_the_power_model_prices(world: Any) -> None:
    rows = [world().row(EXPERT, n, energy_active_mj=None, energy_source=None) for n in (1, 16)]
    curve = curve_of(rows)
    power = power_curve(curve, SPEC)
    expected = modelled_energy(
        SPEC,
        float(curve.measured_work[0][1]),
        float(curve.measured_work[1][1]),
        float(curve.p50[1]),
    )
    assert power.source == "modelled"
    assert power.energy_mj(curve.tokens[1:], curve.p50[1:])[0] == pytest.approx(expected.active_mj)
    assert power.low[1] == pytest.approx(expected.low_mj / expected.active_mj)
    assert power.heat_c_per_mj * expected.active_mj == pytest.approx(expected.temp_rise_c, rel=1e-3)


def test_doubts_about_power_and_latency_add_as_squares(world: Any) -> None:
    power = power_curve(curve_of([world().row(EXPERT, n) for n in (1, 2)]), SPEC)
    latency = np.array([[50.0], [100.0], [200.0]])
    low, high = power.interval_mj(np.array([1.0]), latency)
    factor = np.exp(np.hypot(np.log(2), np.log(2)))
    assert (low[0], high[0]) == pytest.approx((1.0 / factor, 1.0 * factor))


def test_energy_figures_stand_beside_mean_power_and_true_latency(world: Any) -> None:
    curve = curve_of([world().row(EXPERT, n) for n in (1, 2, 4, 8)])
    fold = Fold(
        curve=curve,
        point=1,
        kind="interior",
        measured=float(curve.p50[1]),
        model=1.1 * float(curve.p50[1]),
        std=0.1,
        roofline=1.0,
        linear=1.0,
    )
    figures = energy_figures([fold], SPEC)["modelled"]
    assert figures["model"]["mape"] == pytest.approx(10.0)
    assert figures["mean_power_true_latency"]["mape"] == pytest.approx(0.0, abs=1e-6)
    # 2 tokens lie a third of the way from 1 to 4.
    expected = (2 * curve.p50[0] + curve.p50[2]) / 3 / curve.p50[1] - 1
    assert figures["linear"]["mape"] == pytest.approx(100 * abs(expected), abs=1e-3)


def test_the_modelled_rise_of_a_row_says_nothing_about_its_measured_energy(world: Any) -> None:
    rows = [world().row(EXPERT, n) for n in (1, 2, 4)]
    modelled = power_curve(curve_of(rows), SPEC)
    assert modelled.heat_c_per_mj == pytest.approx(1e-3)
    for row in rows:
        row["energy_source"] = "nvml_counter"
    measured = power_curve(curve_of(rows), SPEC)
    expected = SPEC.resistance_c_per_w / SPEC.time_constant_s / 1e3
    assert measured.heat_c_per_mj == pytest.approx(expected)


def test_an_interval_down_to_zero_stays_wide(world: Any) -> None:
    rows = [world().row(EXPERT, n, energy_mj_low=0.0) for n in (1, 2)]
    power = power_curve(curve_of(rows), SPEC)
    low, _ = power.interval_mj(np.array([1.0]), np.full((3, 1), 100.0))
    assert 0.0 < low[0] < 0.01 * power.energy_mj(np.array([1.0]), np.array([100.0]))[0]


def test_a_table_is_fitted_from_measured_energy(world: Any, dataset: Any) -> None:
    """Half of the points measured at three times the modelled power: the measured ones price."""
    made = world()
    rows = [made.row(EXPERT, n) for n in (1, 2, 4, 8, 16, 32)]
    for row in rows[::2]:
        row["energy_source"] = "nvml_counter"
        row["energy_active_mj"] *= 3
        row["energy_mj_low"] = 0.98 * row["energy_active_mj"]
        row["energy_mj_high"] = 1.02 * row["energy_active_mj"]
    layers = [made.row(EXPERT, 4, op="layer", counts=(4,) * n) for n in (2, 4, 6, 8)]
    fitted = fit_dataset(dataset(rows + layers))
    priced = {row["tokens"]: row for row in fitted.rows.to_pylist()}
    assert {row["energy_source"] for row in priced.values()} == {"nvml_counter"}
    for row in rows:
        expected = 3 * 10.0 * row["latency_us_p50"] / 1e3
        assert priced[row["tokens"]]["energy_mj_p50"] == pytest.approx(expected)
        assert priced[row["tokens"]]["power_w"] == pytest.approx(34.0)
    figures = fitted.manifest.validation
    assert set(figures["energy"]) == {"nvml_counter"}
    (composition,) = fitted.manifest.compositions.values()
    assert composition.latency_mape is not None
    # The layers' energy is modelled: it must not be set against measured experts.
    assert (composition.base_mj, composition.energy_scale) == (0.0, 1.0)
    assert composition.energy_mape is None


def test_layers_measured_like_their_experts_are_composed(world: Any, dataset: Any) -> None:
    made = world()
    rows = [made.row(EXPERT, n) for n in (1, 2, 4, 8)]
    rows += [made.row(EXPERT, 4, op="layer", counts=(4,) * n) for n in (2, 4, 6, 8)]
    for row in rows:
        row["energy_source"] = "nvml_counter"
    (composition,) = fit_dataset(dataset(rows)).manifest.compositions.values()
    assert composition.energy_mape == pytest.approx(0.0, abs=1e-3)
    assert composition.energy_scale == pytest.approx(0.8, rel=1e-3)


def test_energies_of_several_sources_are_noted(world: Any, dataset: Any) -> None:
    other = ExpertClass(d_model=256, d_ff=1024, dtype="float32")
    rows = [world().row(expert, n) for expert in (EXPERT, other) for n in (1, 2, 4)]
    for row in rows[:3]:
        row["energy_source"] = "external_meter"
    notes = fit_dataset(dataset(rows)).manifest.notes
    assert any("several sources (external_meter, modelled)" in note for note in notes)
