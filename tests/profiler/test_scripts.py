from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from costprof.core.device import detect_device
from costprof.core.expert import Op
from costprof.profiler.plan import Run, make_plan
from costprof.profiler.results import calls_from_notes, read_results
from costprof.profiler.scripts import Mode, write_scripts
from costprof.profiler.spec import SweepSpec, parse_spec

ATTENTION = {
    "block": "attention",
    "d_model": 64,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 16,
    "context_len": 8,
    "activation": "none",
    "dtype": "float32",
}
EVERY_OP: dict[str, Any] = {
    "name": "every-op",
    "device": "cpu",
    "experts": {
        "f32": {"d_model": 64, "d_ff": 128, "dtype": "float32"},
        "relu": {"d_model": 64, "d_ff": 128, "dtype": "float32", "activation": "relu"},
        "int4": {"d_model": 64, "d_ff": 128, "dtype": "float32", "quantisation": "int4"},
        "attention": ATTENTION,
    },
    "measure": [
        {"expert": "f32", "ops": ["expert", "fc1", "activation", "fc2"], "tokens": [3]},
        {"expert": "relu", "ops": ["expert", "fc1", "activation", "fc2"], "tokens": [3]},
        {"expert": "int4", "ops": ["expert", "fc1", "fc2", "pack", "unpack"], "tokens": [3]},
        {"expert": "attention", "ops": ["attention"], "tokens": [3]},
    ],
    "layer": [{"expert": "f32", "experts": 4, "top_k": 2, "tokens": [3]}],
    "timing": {"target_ms": 1, "max_repetitions": 10, "threads": 1},
}


def every_op() -> Run:
    plan = make_plan(parse_spec(EVERY_OP, source="test"), "cpu")
    return Run(tuple(plan.scenarios))


@pytest.mark.parametrize("mode", ["clock", "profiler"])
def test_the_script_of_every_op_runs_and_times_each_pass(tmp_path: Path, mode: Mode) -> None:
    run = every_op()
    timing = parse_spec(EVERY_OP, source="test").timing
    script = write_scripts(run, tmp_path, mode, timing, detect_device("cpu"))
    notes = tmp_path / "notes.jsonl"
    subprocess.run([sys.executable, str(script), str(notes)], check=True, capture_output=True)
    outcome, done = read_results(notes)
    assert outcome.errors == {}
    assert outcome.crash is None
    assert outcome.threads == 1
    timer = {"clock": "monotonic_clock", "profiler": "profiler_range"}[mode]
    assert set(outcome.timers.values()) == {timer}
    calls = calls_from_notes(done)
    assert calls.keys() == {scenario.scenario_id for scenario in run.scenarios}
    for measured in calls.values():
        assert set(measured.pass_index) == {0, 1}
        assert (measured.wall_us > 0).all()
        if mode == "profiler":
            assert (measured.kernel_sum_us > 0).all()
            assert (measured.kernel_sum_us <= measured.wall_us * 1.01).all()


def test_every_template_branch_is_python_and_carries_no_values(tiny_spec: SweepSpec) -> None:
    from costprof.profiler.scripts import _environment

    assert {s.op for s in every_op().scenarios} == set(get_args(Op))
    template = _environment().get_template("scenario.py.j2")
    for op, mode, device in itertools.product(get_args(Op), get_args(Mode), ("cpu", "cuda")):
        source = template.render(op=op, mode=mode, device=device)
        compile(source, f"{op}-{mode}-{device}", "exec")
        assert source.startswith('"""')
        assert max(len(line) for line in source.splitlines()) <= 100
    for device in ("cpu", "cuda"):
        source = _environment().get_template("run.py.j2").render(device=device)
        compile(source, f"run-{device}", "exec")


def test_what_a_user_names_travels_as_data_alone(tmp_path: Path) -> None:
    values = {
        **EVERY_OP,
        "name": 'evil"""\nimport os',
        "measure": [{"expert": "f32", "tokens": [7], "configs": [{"BLOCK_M": 48_611}]}],
    }
    spec = parse_spec(values, source="test")
    plan = make_plan(spec, "cpu")
    write_scripts(plan.runs[0], tmp_path, "clock", spec.timing, detect_device("cpu"))
    for path in tmp_path.glob("*.py"):
        text = path.read_text()
        assert "48611" not in text
        assert "evil" not in text
        assert "torch_ffn" not in text
    beside = json.loads((tmp_path / f"{plan.scenarios[0].scenario_id}.json").read_text())
    assert beside["kernel"]["config"] == {"BLOCK_M": 48_611}


def test_a_scenario_script_runs_alone(tmp_path: Path, tiny_spec: SweepSpec) -> None:
    plan = make_plan(tiny_spec, "cpu")
    write_scripts(plan.runs[0], tmp_path, "clock", tiny_spec.timing, detect_device("cpu"))
    path = tmp_path / f"{plan.scenarios[0].scenario_id}.py"
    done = subprocess.run([sys.executable, str(path)], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["label"] == plan.scenarios[0].label()


def test_the_profiler_finds_calls_whose_names_look_like_mangled_ones(
    tmp_path: Path, tiny_spec: SweepSpec
) -> None:
    # "17" and 17 more characters are a source name to a C++ demangler, which drops the 17.
    plan = make_plan(tiny_spec, "cpu")
    write_scripts(plan.runs[0], tmp_path, "profiler", tiny_spec.timing, detect_device("cpu"))
    path = tmp_path / f"{plan.scenarios[0].scenario_id}.py"
    values = json.loads(path.with_suffix(".json").read_text())
    values |= {"scenario_id": "17dcbb62de08ff2e", "min_repetitions": 12, "max_repetitions": 12}
    path.with_suffix(".json").write_text(json.dumps(values))
    done = subprocess.run([sys.executable, str(path)], check=True, capture_output=True, text=True)
    assert len(json.loads(done.stdout.splitlines()[-1])["wall_us"]) == 12


def test_a_layer_that_reads_few_experts_rotates_through_more_copies(tmp_path: Path) -> None:
    values = {
        **EVERY_OP,
        "measure": [],
        "layer": [
            {
                **EVERY_OP["layer"][0],
                "experts": 16,
                "tokens": [64],
                "distributions": ["balanced", "active-2"],
            }
        ],
    }
    spec = parse_spec(values, source="test")
    plan = make_plan(spec, "cpu")
    write_scripts(plan.runs[0], tmp_path, "clock", spec.timing, detect_device("cpu"))
    paths = [tmp_path / f"{s.scenario_id}.json" for s in plan.scenarios]
    whole, few = (json.loads(path.read_text())["rotate_bytes"] for path in paths)
    assert few == 8 * whole


def test_cold_weights_are_rotated_past_the_last_level_cache(tmp_path: Path) -> None:
    values = {
        **EVERY_OP,
        "measure": [{"expert": "f32", "tokens": [1], "cache": ["cold", "warm"]}],
        "layer": [],
    }
    spec = parse_spec(values, source="test")
    plan = make_plan(spec, "cpu")
    write_scripts(plan.runs[0], tmp_path, "clock", spec.timing, detect_device("cpu"))
    sizes = {}
    for scenario in plan.scenarios:
        code = (
            "import runpy, sys; m = runpy.run_path(sys.argv[1]); ops = m['make_operands']();"
            "print("
            "sum(w.nbytes for c in ops for w in c))"
        )
        path = tmp_path / f"{scenario.scenario_id}.py"
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True
        )
        sizes[scenario.cache_state] = int(done.stdout)
    cache_bytes = detect_device("cpu").cache_bytes
    assert sizes["cold"] >= 2 * cache_bytes
    assert sizes["warm"] == 3 * 64 * 128 * 4
