from __future__ import annotations

import json
from pathlib import Path

import pytest

from costprof.core.errors import InputError
from costprof.core.expert import ExpertClass, Kernel, LayerClass
from costprof.profiler.kernels import default_kernel_name, resolve_kernel
from costprof.profiler.plan import make_plan
from costprof.profiler.scenario import Scenario
from costprof.profiler.spec import SweepSpec, parse_spec

EXPERT = ExpertClass(d_model=64, d_ff=64, dtype="float32")


def spec_with(**changes: object) -> SweepSpec:
    values: dict[str, object] = {
        "name": "s",
        "experts": {"a": {"d_model": 64, "d_ff": 64, "dtype": "float32"}},
        "measure": [{"expert": "a", "tokens": [1, 2]}],
    }
    return parse_spec({**values, **changes}, source="test")


def test_the_plan_is_the_product_of_what_is_asked_without_duplicates() -> None:
    spec = spec_with(
        measure=[
            {"expert": "a", "ops": ["expert", "fc1"], "tokens": [1, 2], "cache": ["cold", "warm"]},
            {"expert": "a", "ops": ["expert"], "tokens": [2, 3]},
        ]
    )
    scenarios = make_plan(spec, "cpu").scenarios
    assert len({s.scenario_id for s in scenarios}) == len(scenarios) == 9


def test_the_same_spec_makes_the_same_plan_and_another_timing_another_one() -> None:
    assert make_plan(spec_with(), "cpu").plan_id == make_plan(spec_with(), "cpu").plan_id
    other = spec_with(timing={"target_ms": 1})
    assert make_plan(other, "cpu").plan_id != make_plan(spec_with(), "cpu").plan_id


def test_isolate_gives_each_scenario_its_own_run() -> None:
    plan = make_plan(spec_with(), "cpu", isolate=True)
    assert [len(run.scenarios) for run in plan.runs] == [1, 1]


def test_a_run_stays_within_its_seconds() -> None:
    spec = spec_with(
        measure=[{"expert": "a", "tokens": list(range(1, 60))}],
        timing={"target_ms": 500, "run_seconds": 10},
    )
    plan = make_plan(spec, "cpu")
    assert len(plan.runs) > 1
    assert [s for run in plan.runs for s in run.scenarios] == plan.scenarios


def layer_spec(**changes: object) -> SweepSpec:
    layer = {"expert": "a", "experts": 4, "top_k": 2, "tokens": [8]}
    return spec_with(measure=[], layer=[{**layer, **changes}])


def test_stated_counts_are_measured_beside_those_of_a_distribution() -> None:
    scenarios = make_plan(layer_spec(counts=[[3, 3, 0, 0], [1, 0, 2, 1]]), "cpu").scenarios
    layers = [(s.tokens, s.layer.counts, s.layer.distribution) for s in scenarios if s.layer]
    assert layers == [
        (8, (4, 4, 4, 4), "balanced"),
        (3, (3, 3, 0, 0), "stated"),
        (2, (1, 0, 2, 1), "stated"),
    ]
    alone = make_plan(layer_spec(tokens=[], counts=[[1, 1, 0, 0]]), "cpu").scenarios
    assert [s.tokens for s in alone] == [1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens": []}, "neither 'tokens' nor 'counts'"),
        ({"counts": [[1, 1, 2]]}, "3 counts are given for 4 experts"),
        ({"counts": [[0, 0, 0, 0]]}, "all counts are 0"),
        ({"counts": [[1, 1, 1, 0]]}, "the counts add up to 3, no multiple of top_k 2"),
        ({"counts": [[3, 1, 0, 0]]}, "an expert gets 3 rows of 2 tokens"),
        ({"counts": [[2, -1, 1, 0]]}, "greater than or equal to 0"),
        ({"counts": [[2.5, 1, 1, 0]]}, "valid integer"),
    ],
)
def test_counts_that_no_routing_gives_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        layer_spec(**changes)


def test_a_shard_takes_rows_of_other_ranks_tokens() -> None:
    (scenario, *_) = make_plan(
        layer_spec(tokens=[], counts=[[7, 0, 0, 0]], ep_size=8), "cpu"
    ).scenarios
    assert scenario.tokens == 4


TILED = """
def tiled(x, w1, w2, BLOCK_M=16, num_warps=4):
    return x

tiled.tile_space = {"BLOCK_M": (16, 32, 64), "num_warps": (2, 4, 8)}
tiled.tile_allowed = lambda config, expert: config["BLOCK_M"] * config["num_warps"] <= expert.d_ff
"""


def test_members_of_a_tile_space_are_measured_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiled_for_test.py").write_text(TILED)
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = {"expert": "a", "tokens": [1], "tiles": 3}
    kernels = {"expert": "tiled_for_test:tiled"}
    scenarios = make_plan(spec_with(measure=[{**entry, "kernels": kernels}]), "cpu").scenarios
    configs = [s.kernel.config for s in scenarios]
    assert configs[0] == {}
    assert len(configs) == 1 + 3
    assert all(config["BLOCK_M"] * config["num_warps"] <= 64 for config in configs[1:])
    more = make_plan(
        spec_with(measure=[{**entry, "kernels": kernels, "tiles": 99}]), "cpu"
    ).scenarios
    assert len(more) == 1 + 3  # 16x2, 16x4, 32x2
    assert len(make_plan(spec_with(measure=[entry]), "cpu").scenarios) == 1


def test_every_field_of_a_scenario_changes_its_id() -> None:
    kernel = Kernel(name="m:f", source_hash="1", framework="t 1")
    base = {
        "expert": EXPERT,
        "op": "expert",
        "tokens": 1,
        "cache_state": "cold",
        "kernel": kernel,
        "device": "cpu",
    }
    variants = [
        {},
        {"tokens": 2},
        {"op": "fc1"},
        {"cache_state": "warm"},
        {"device": "cuda"},
        {"expert": ExpertClass(d_model=64, d_ff=128, dtype="float32")},
        {"kernel": Kernel(name="m:f", source_hash="2", framework="t 1")},
        {"kernel": Kernel(name="m:f", source_hash="1", framework="t 2")},
        {"kernel": Kernel(name="m:f", source_hash="1", framework="t 1", config={"BLOCK_M": 16})},
        {
            "op": "layer",
            "layer": LayerClass(experts=2, top_k=1, counts=(1, 0), distribution="active-1"),
        },
    ]
    ids = {Scenario(**{**base, **variant}).scenario_id for variant in variants}  # type: ignore[arg-type]
    assert len(ids) == len(variants)


def test_tile_configs_share_a_class_and_differ_as_scenarios() -> None:
    spec = spec_with(
        measure=[{"expert": "a", "tokens": [1], "configs": [{}, {"BLOCK_M": 16}]}],
    )
    first, second = make_plan(spec, "cpu").scenarios
    assert first.class_id == second.class_id
    assert first.scenario_id != second.scenario_id


def test_a_moe_names_the_cold_class_of_each_expert() -> None:
    spec = spec_with(
        measure=[{"expert": "a", "tokens": [1], "cache": ["warm", "cold"]}],
        moe=[{"name": "m", "top_k": 1, "experts": [{"expert": "a", "count": 3}]}],
    )
    plan = make_plan(spec, "cpu")
    cold = next(s for s in plan.scenarios if s.cache_state == "cold")
    assert plan.moes == ({"name": "m", "top_k": 1, "class_of_expert": [cold.class_id] * 3},)


def test_a_moe_whose_expert_is_not_measured_is_refused() -> None:
    spec = spec_with(
        measure=[{"expert": "a", "ops": ["fc1"], "tokens": [1]}],
        moe=[{"name": "m", "top_k": 1, "experts": [{"expert": "a", "count": 3}]}],
    )
    with pytest.raises(InputError, match="op 'expert' is not measured"):
        make_plan(spec, "cpu")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("os.system", "not of the form module:function"),
        ("no_such_module_here:f", "cannot be imported"),
        ("math:no_such_function", "cannot be imported"),
        ("math:pi", "is not callable"),
    ],
)
def test_kernels_that_cannot_be_used_are_named(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        resolve_kernel(name)


@pytest.mark.parametrize("kernels", [{}, {"expert": "costprof.runtime.kernels.torch_ffn:swiglu"}])
@pytest.mark.parametrize("quantisation", ["fp8_block", "mxfp4"])
def test_weights_that_no_kernel_runs_are_refused(
    quantisation: str, kernels: dict[str, str]
) -> None:
    spec = spec_with(
        experts={"a": {"d_model": 64, "d_ff": 64, "quantisation": quantisation}},
        measure=[{"expert": "a", "tokens": [1], "kernels": kernels}],
    )
    with pytest.raises(InputError, match=f"{quantisation} can be priced but not run"):
        make_plan(spec, "cpu")


def test_the_plan_fits_into_json() -> None:
    for scenario in make_plan(spec_with(), "cpu").scenarios:
        assert json.loads(json.dumps(scenario.to_dict())) == scenario.to_dict()


def test_fp8_experts_are_widened_where_the_gpu_cannot_multiply_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expert = ExpertClass(d_model=64, d_ff=64, quantisation="fp8")
    assert "triton_experts" in default_kernel_name(expert, "layer", "cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for capability, module in (((8, 0), "torch_packed"), ((9, 0), "triton_experts")):
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda found=capability: found)
        assert module in default_kernel_name(expert, "layer", "cuda")
