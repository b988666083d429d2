"""Trials for real: generated workload, sampler process, rounds, resume, merge."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from costprof.core.device import detect_device, software_versions
from costprof.core.errors import InputError
from costprof.profiler.backends.choose import choose_backend
from costprof.profiler.dataset import read_measurements
from costprof.profiler.energy import campaign as campaign_module
from costprof.profiler.energy.campaign import Campaign, choose_scenarios, estimate_s, measurable
from costprof.profiler.energy.nvml import Conditions
from costprof.profiler.energy.store import merge_energy, read_trials, write_trials
from costprof.profiler.energy.trace import read_trace
from costprof.profiler.energy.trial import Bench, Power
from costprof.profiler.energy.workload import Phases, meter_phases, nvml_phases
from costprof.profiler.plan import Plan, Run, make_plan
from costprof.profiler.rows import Energy
from costprof.profiler.scenario import Scenario
from costprof.profiler.scripts import _environment
from costprof.profiler.spec import parse_spec
from costprof.profiler.sweep import Sweep

BUSY = "kernels_for_energy:busy"
RAISES = "kernels_for_energy:raises"
PHASES = Phases(idle_s=2.2, window_s=2.2, preheat_s=0.3)


class Silent:
    def __init__(self) -> None:
        self.begun: list[str] = []
        self.rows: list[dict[str, Any]] = []

    def process_begins(self, run: Run, scenarios: int, notes: Path) -> None: ...

    def run_ends(self, run: Run, statuses: dict[str, int]) -> None: ...

    def trial_begins(self, scenario: Scenario, trial: int) -> None:
        self.begun.append(f"{scenario.kernel.name} {trial}")

    def trial_ends(self, row: dict[str, Any]) -> None:
        self.rows.append(row)


def modelled(*, flops: float, bytes: float, latency_us: float) -> Energy:
    return Energy(
        active_mj=1.0,
        idle_mj=1.0,
        low_mj=0.5,
        high_mj=2.0,
        power_mean_w=10.0,
        temp_rise_c=0.125,
        source="modelled",
    )


def swept(folder: Path, spec: dict[str, Any]) -> Plan:
    plan = make_plan(parse_spec(spec, source="test"), "cpu")
    folder.mkdir()
    Sweep(
        plan=plan,
        folder=folder,
        backend=choose_backend("inprocess", "cpu", plan.timing.max_repetitions),
        device=detect_device("cpu"),
        software=software_versions(),
        energy_model=modelled,
    ).run(Silent())
    return plan


def campaign(plan: Plan, folder: Path, reader: str, scenarios: tuple[Scenario, ...]) -> Campaign:
    bench = Bench(
        folder=folder,
        device=detect_device("cpu"),
        timing=plan.timing,
        phases=PHASES,
        power=Power(f"readers_for_energy:{reader}", "0"),
    )
    return Campaign(bench=bench, scenarios=scenarios, seed="test")


@pytest.mark.slow
def test_trials_measure_the_known_watts_and_replace_the_modelled_energy(
    tmp_path: Path, device_modules: Path, energy_spec: Callable[..., dict[str, Any]]
) -> None:
    folder = tmp_path / "data"
    plan = swept(folder, energy_spec(BUSY, RAISES))
    scenarios = measurable(folder, tuple(plan.scenarios))
    assert [s.kernel.name for s in scenarios] == [BUSY], "what does not run has no energy"
    work = campaign(plan, folder, "Reader", scenarios)
    assert work.left() == 3
    observer = Silent()
    report = work.run(observer)
    assert report.problem is None
    assert observer.begun == [f"{BUSY} 0", f"{BUSY} 1", f"{BUSY} 2"]
    (result,) = report.results.values()
    trials = read_trials(folder)[scenarios[0].scenario_id]
    for row in trials:
        assert row["status"] == "accepted", row["reason"]
        assert row["launch"] == "plain"
        assert row["source"] == "nvml_counter"
        # 100 W above idle for as long as a call takes.
        assert row["energy_active_mj"] == pytest.approx(100 * row["call_us"] * 1e-3, rel=0.04)
        assert row["idle_w_before"] == pytest.approx(50, rel=0.05)
        assert row["window_s"] > 2.0
        assert row["throttle_reasons"] == "none"
    assert [row["run_order"] for row in trials] == [0, 1, 2]
    name = scenarios[0].scenario_id
    assert read_trace(folder / "logs" / "energy" / f"{name}.0.csv").time_s.size > 500

    rows = {row["kernel"]: row for row in read_measurements(folder).to_pylist()}
    merged = rows[BUSY]
    assert merged["energy_source"] == "nvml_counter"
    assert merged["energy_active_mj"] == pytest.approx(result.active_mj)
    assert merged["energy_mj_low"] < merged["energy_active_mj"] < merged["energy_mj_high"]
    assert merged["energy_idle_mj"] == pytest.approx(
        result.idle_w * merged["latency_us_p50"] * 1e-3
    )
    assert merged["temp_before_c"] == 40.0
    assert merged["sm_clock_after_mhz"] == 1000.0
    assert merged["power_peak_w"] == 150.0
    assert merged["temp_rise_c"] == 0.125, "stays modelled"
    assert rows[RAISES]["energy_source"] is None

    before = read_measurements(folder)
    assert work.left() == 0
    again = work.run(silent := Silent())
    assert silent.begun == []
    assert again.results.keys() == report.results.keys()
    assert read_measurements(folder).equals(before)
    assert "energy measured of 1 scenarios (nvml_counter)" in again.lines()[0]


@pytest.mark.slow
def test_a_dead_sampler_rejects_the_trial_and_a_refused_one_ends_the_trials(
    tmp_path: Path,
    device_modules: Path,
    energy_spec: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "data"
    plan = swept(folder, energy_spec(BUSY))
    monkeypatch.setattr(campaign_module, "MAX_TRIALS", 1)
    before = read_measurements(folder)
    report = campaign(plan, folder, "Dying", tuple(plan.scenarios)).run(Silent())
    assert report.results == {}
    assert (
        "0 of 1 trials accepted, fewer than 3; the last one: the power sampler ended"
        in (report.rejected[0])
    )
    (rows,) = read_trials(folder).values()
    assert (rows[0]["status"], rows[0]["reason"]) == (
        "rejected",
        "the power sampler ended with code 9",
    )
    assert read_measurements(folder).equals(before), "the modelled energy stays"
    monkeypatch.setattr(campaign_module, "MAX_TRIALS", 6)
    report = campaign(plan, folder, "refused", tuple(plan.scenarios)).run(Silent())
    assert report.problem == "this reader is refused; nothing was read; ask for another"


@pytest.mark.slow
def test_a_kernel_that_fails_is_tried_twice(
    tmp_path: Path, device_modules: Path, energy_spec: Callable[..., dict[str, Any]]
) -> None:
    folder = tmp_path / "data"
    plan = swept(folder, energy_spec(BUSY, RAISES))
    failing = tuple(s for s in plan.scenarios if s.kernel.name == RAISES)
    observer = Silent()
    report = campaign(plan, folder, "Reader", failing).run(observer)
    assert [row["status"] for row in observer.rows] == ["failed", "failed"]
    assert observer.rows[0]["reason"] == "the process failed: RuntimeError: no such call"
    assert "0 of 2 trials accepted" in report.rejected[0]


def test_rounds_go_over_all_scenarios_in_random_order_and_cool_down_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"k{i}:f" for i in range(6)]
    temps = iter([40.0, 40.0, *[41.0] * 3, 60.0, 50.0, 42.0, *[41.0] * 100])
    slept: list[float] = []

    class Thermometer:
        def counter_mj(self) -> float:
            return 1.0

        def power_w(self) -> None:
            return None

        def conditions(self) -> Conditions:
            return Conditions(temp_c=next(temps))

        def close(self) -> None: ...

    class Named:
        def __init__(self, name: str) -> None:
            self.scenario_id = name

        def label(self) -> str:
            return self.scenario_id

    gaps: list[float] = []

    def run_trial(bench: Bench, scenario: Any, trial: int, gap_s: float) -> dict[str, Any]:
        gaps.append(gap_s)
        first_of_one = scenario.scenario_id == "k0:f" and trial == 0
        status = "rejected" if first_of_one else "accepted"
        return {"scenario_id": scenario.scenario_id, "trial": trial, "status": status}

    monkeypatch.setattr(campaign_module, "run_trial", run_trial)
    monkeypatch.setattr(campaign_module, "open_reader", lambda name, device: Thermometer())
    monkeypatch.setattr(campaign_module, "merge_energy", lambda folder: {})
    timing = parse_spec(
        {
            "name": "t",
            "experts": {"a": {"d_model": 64, "d_ff": 64, "dtype": "float32"}},
            "measure": [{"expert": "a", "tokens": [1]}],
        },
        source="test",
    ).timing
    work = Campaign(
        bench=Bench(
            folder=tmp_path,
            device=detect_device("cpu"),
            timing=timing,
            phases=PHASES,
            power=Power("a:b", "0"),
        ),
        scenarios=tuple(Named(name) for name in names),  # type: ignore[arg-type]
        seed="s",
        sleep=slept.append,
    )
    observer = Silent.__new__(Silent)
    order: list[str] = []
    observer.trial_begins = lambda scenario, trial: order.append(scenario.scenario_id)  # type: ignore[method-assign]
    observer.trial_ends = lambda row: None  # type: ignore[method-assign]
    work.run(observer)
    assert len(order) == 19, "three each, and one more for the rejected one"
    rounds = [order[0:6], order[6:12], order[12:18]]
    assert all(sorted(each) == names for each in rounds)
    assert rounds[0] != rounds[1] != rounds[2]
    assert any(each != names for each in rounds)
    assert order[18] == "k0:f"
    assert sum(slept) == 1.0, "60 and 50 °C are waited for, 42 °C is within the band of 40"
    assert len(set(gaps)) == 19
    assert all(0 <= gap <= 0.1 for gap in gaps)


def test_scenarios_are_spread_and_counted(energy_spec: Callable[..., dict[str, Any]]) -> None:
    values = energy_spec("costprof.runtime.kernels.torch_ffn:swiglu")
    values["measure"] = [{"expert": "f32", "ops": ["expert", "fc1"], "tokens": list(range(1, 31))}]
    plan = make_plan(parse_spec(values, source="test"), "cpu")
    assert len(choose_scenarios(plan, "all")) == 60
    assert [s.tokens for s in choose_scenarios(plan, "3")] in ([1, 15, 30], [1, 16, 30])
    (one,) = choose_scenarios(plan, "1")
    assert one.tokens == 16
    for wrong in ("0", "-2", "some", "2.5"):
        with pytest.raises(InputError, match="is no number of scenarios"):
            choose_scenarios(plan, wrong)
    assert estimate_s(2, nvml_phases()) == pytest.approx(2 * 3 * (11 + 6 + 1 + 6.3))
    assert meter_phases().window_s == 10.0


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    write_trials(tmp_path, "s", [{"scenario_id": "s", "trial": 0, "status": "failed"}])
    assert len(read_trials(tmp_path)["s"]) == 1
    assert merge_energy(tmp_path) == {}
    (tmp_path / "energy" / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(Exception, match=r"t.parquet cannot be read"):
        read_trials(tmp_path)


def test_every_branch_of_the_workload_is_python() -> None:
    template = _environment().get_template("energy.py.j2")
    for device in ("cpu", "cuda"):
        source = template.render(device=device)
        ast.parse(source)
        assert max(len(line) for line in source.splitlines()) <= 100
