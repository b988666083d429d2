"""Energy there and back: whose turn it is, what is kept, what counts as measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gpu_steps.energy import measure_energy, measure_there_and_back, whose_turn
from gpu_steps.listing import CPU_MODELS, ENERGY, MODELS, MORE_ENERGY, Day
from gpu_steps.measures import counters
from gpu_steps.running import Refused
from gpu_steps.specs import model_spec

from costprof.core.device import detect_device
from costprof.core.errors import ToolError
from costprof.profiler.dataset import read_measurements, write_measurements
from costprof.profiler.energy.store import read_trials, write_trials
from costprof.profiler.energy.trial import Bench, Power
from costprof.profiler.energy.workload import Phases
from costprof.profiler.plan import Plan, make_plan
from costprof.profiler.scenario import Scenario
from costprof.profiler.schema import ENERGY as ENERGY_SCHEMA
from costprof.profiler.schema import MEASUREMENTS
from costprof.profiler.spec import parse_spec

KERNELS = "kernels_there_and_back"
MODULE = """
import mmap, struct, time
from pathlib import Path
from costprof.profiler.energy.nvml import Conditions

with Path(__file__).with_name("stamp").open("r+b") as file:
    STAMP = mmap.mmap(file.fileno(), 8)

def works(x, w1, w2):
    STAMP[:] = struct.pack("d", time.monotonic() + 0.02)
    time.sleep(0.002)
    return x

def raises(x, w1, w2):
    raise RuntimeError("no such call")

class Reader:
    '''Draws 150 W while `works` runs, else 50 W; offers no counter.'''
    def __init__(self, device): ...
    def counter_mj(self): return None
    def power_w(self): return 150.0 if time.monotonic() < struct.unpack("d", STAMP[:])[0] else 50.0
    def conditions(self): return Conditions(temp_c=40.0)
    def close(self): ...
"""


def test_trials_go_there_and_back() -> None:
    order, trials = "", [0, 0]
    while (turn := whose_turn(trials, [3 - done for done in trials])) is not None:
        order += "AB"[turn]
        trials[turn] += 1
    assert order == "ABBAAB"


def test_what_was_cut_off_goes_on_and_rejected_trials_are_made_up_for() -> None:
    assert whose_turn([1, 1], [2, 2]) == 1, "A B | B"
    assert whose_turn([2, 2], [1, 1]) == 0, "A B B A | A"
    assert whose_turn([3, 3], [0, 2]) == 1, "B was rejected twice"
    assert whose_turn([3, 6], [0, 0]) is None
    assert whose_turn([0, 0, 0], [3, 3, 3]) == 0
    assert whose_turn([1, 1, 1], [2, 2, 2]) == 2


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Return a bench whose dataset is empty and whose meter tells work from rest."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / f"{KERNELS}.py").write_text(MODULE)
    (modules / "stamp").write_bytes(bytes(8))
    monkeypatch.syspath_prepend(str(modules))
    monkeypatch.setenv("PYTHONPATH", str(modules))
    folder = tmp_path / "data"
    folder.mkdir()
    return Bench(
        folder=folder,
        device=detect_device("cpu"),
        timing=parse_spec(spec("works"), source="test").timing,
        phases=Phases(idle_s=2.2, window_s=2.2),
        power=Power(f"{KERNELS}:Reader", "0"),
    )


def spec(*kernels: str) -> dict[str, Any]:
    return {
        "name": "two",
        "device": "cpu",
        "experts": {"f32": {"d_model": 64, "d_ff": 64, "dtype": "float32"}},
        "measure": [
            {
                "expert": "f32",
                "tokens": [2],
                "kernels": {"expert": f"kernels_there_and_back:{name}"},
            }
            for name in kernels
        ],
        "timing": {"threads": 1, "target_ms": 10},
    }


def timed(bench: Bench, *kernels: str) -> tuple[Plan, list[Scenario]]:
    """Plan a scenario for each kernel, and note that timing them went well."""
    plan = make_plan(parse_spec(spec(*kernels), source="test"), "cpu")
    rows = [
        dict.fromkeys(MEASUREMENTS.names)
        | {"scenario_id": s.scenario_id, "status": "ok", "latency_us_p50": 10.0}
        for s in plan.scenarios
    ]
    write_measurements(bench.folder, "r1", rows)
    return plan, plan.scenarios


def trial(scenario: Scenario, number: int, **values: Any) -> dict[str, Any]:
    return dict.fromkeys(ENERGY_SCHEMA.names) | {
        "scenario_id": scenario.scenario_id,
        "trial": number,
        "status": "accepted",
        "source": "nvml_counter",
        "energy_active_mj": 2.0 + 0.01 * number,
        "idle_w_before": 50.0,
        "power_mean_w": 90.0,
        **values,
    }


def test_what_was_measured_stays_and_what_cannot_be_is_named(bench: Bench) -> None:
    _, (works, raises) = timed(bench, "works", "raises")
    write_trials(bench.folder, works.scenario_id, [trial(works, n) for n in range(3)])
    failed = trial(raises, 0, status="failed", reason="it crashed")
    write_trials(bench.folder, raises.scenario_id, [failed])

    found = measure_there_and_back(bench, [works, raises])
    trials = read_trials(bench.folder)
    assert len(trials[works.scenario_id]) == 3
    # A real trial, whose workload raises; after two such failures there is no use in a third.
    assert [row["status"] for row in trials[raises.scenario_id]] == ["failed", "failed"]
    assert "no such call" in trials[raises.scenario_id][1]["reason"]
    (energy,) = found["scenarios"]
    assert (energy["scenario_id"], energy["trials"]) == (works.scenario_id, 3)
    assert energy["energy_active_mj"] == pytest.approx(2.01)
    (without,) = found["without"]
    assert "0 of 2 trials accepted" in without
    rows = {row["scenario_id"]: row for row in read_measurements(bench.folder).to_pylist()}
    assert rows[works.scenario_id]["energy_source"] == "nvml_counter"
    assert rows[raises.scenario_id]["energy_source"] is None

    with pytest.raises(Refused, match="0 of 2 trials accepted, fewer than 3; the last one"):
        measure_there_and_back(bench, [raises])


@pytest.mark.slow
def test_a_scenario_that_was_cut_off_is_measured_to_its_end(bench: Bench) -> None:
    _, (works,) = timed(bench, "works")
    before = [trial(works, n, source="nvml_integral", energy_active_mj=0.2) for n in range(2)]
    write_trials(bench.folder, works.scenario_id, before)
    (energy,) = measure_there_and_back(bench, [works])["scenarios"]
    rows = read_trials(bench.folder)[works.scenario_id]
    assert [row["status"] for row in rows] == ["accepted"] * 3, rows[-1]["reason"]
    assert (rows[2]["trial"], rows[2]["run_order"]) == (2, 2)
    # 100 W above idle for as long as a call takes.
    assert rows[2]["energy_active_mj"] == pytest.approx(0.1 * rows[2]["call_us"], rel=0.05)
    assert (energy["trials"], energy["source"]) == (3, "nvml_integral")


def test_all_trials_rejected_is_no_energy(bench: Bench) -> None:
    _, (works,) = timed(bench, "works")
    rows = [trial(works, n, status="rejected", reason="slowed down") for n in range(6)]
    write_trials(bench.folder, works.scenario_id, rows)
    with pytest.raises(Refused, match=r"0 of 6 trials accepted, fewer than 3; .* slowed down"):
        measure_there_and_back(bench, [works])


def test_a_cpu_has_no_counter_to_read(bench: Bench) -> None:
    plan, scenarios = timed(bench, "works")
    with pytest.raises(ToolError, match="a CPU here has no energy counter"):
        measure_energy(bench.folder, plan, bench.device, scenarios)


def test_counters_that_were_not_read_are_no_result(tmp_path: Path) -> None:
    path = tmp_path / "one.toml"
    path.write_text(
        'name = "one"\ndevice = "cpu"\n'
        'experts = { a = { d_model = 64, d_ff = 64, dtype = "float32" } }\n'
        'measure = [{ expert = "a", tokens = [2] }]\n'
        "timing = { threads = 1, target_ms = 10, remeasure = 0 }\n"
    )
    folder = tmp_path / "data"
    sweep = ["sweep", str(path), "--out", str(folder), "--resume", "--backend", "inprocess"]
    with pytest.raises(Refused, match="ncu counts on NVIDIA GPUs alone"):
        counters(sweep, folder, tmp_path / "counters.json")
    assert not (tmp_path / "counters.json").exists()
    assert read_measurements(folder).num_rows == 1, "the timing stays"


@pytest.fixture(scope="module")
def plan_of() -> Callable[[str], Plan]:
    """Return what gives the plan of a model for a GPU, made once."""
    plans: dict[str, Plan] = {}

    def plan(model: str) -> Plan:
        if model not in plans:
            plans[model] = make_plan(model_spec(model), "cuda")
        return plans[model]

    return plan


def test_every_comparison_names_scenarios_that_the_sweeps_have(
    plan_of: Callable[[str], Plan],
) -> None:
    scenarios: set[str] = set()
    for name, wanted, models in (*ENERGY, *MORE_ENERGY):
        for model in models:
            found = [each.find(plan_of(model)) for each in wanted]
            ids = {scenario.scenario_id for scenario in found}
            assert len(ids) == len(wanted), (name, model)
            scenarios |= ids
            if name == "layer-16":
                ours, theirs = (scenario.kernel.name for scenario in found)
                assert "triton_experts:grouped" in ours
                assert "torch_grouped_mm" in theirs
    # With one scenario a policy at five batch sizes these are the sixty.
    assert 45 <= len(scenarios) <= 55


def test_the_sweeps_price_one_more_active_expert(plan_of: Callable[[str], Plan]) -> None:
    expected = {
        "Qwen3-30B-A3B": {8, 16, 32, 64, 128},
        "OLMoE-1B-7B": {8, 16, 32, 64},
        "Mixtral-8x7B": {2, 4, 8},
        "gpt-oss-20b": {4, 8, 16, 32},
        "DeepSeek-V3": {8, 16},
    }
    for model in MODELS:
        active = {
            sum(count > 0 for count in scenario.layer.counts)
            for scenario in plan_of(model).scenarios
            if scenario.layer is not None
            and scenario.tokens == 16
            and "triton_experts" in scenario.kernel.name
            and not scenario.layer.distribution.startswith("zipf")
        }
        assert active == expected[model], model


def test_no_two_steps_share_a_name_or_a_result(tmp_path: Path) -> None:
    for device in ("cuda", "cpu"):
        steps = Day(device, None, tmp_path).steps()
        assert len({step.name for step in steps}) == len(steps)
        assert len({step.result for step in steps}) == len(steps)
    assert any(CPU_MODELS[0] in step.name for step in steps)
