"""From a config.json to a sweep: shapes, shards, and what is left out."""

from __future__ import annotations

import itertools

import pytest

from costprof.core.errors import InputError
from costprof.profiler.models import spec_from_config
from costprof.profiler.plan import make_plan
from costprof.profiler.presets import load_preset, preset_names
from costprof.profiler.spec import SweepSpec

MIXTRAL = {
    "model_type": "mixtral",
    "hidden_act": "silu",
    "hidden_size": 256,
    "intermediate_size": 512,
    "max_position_embeddings": 2048,
    "num_attention_heads": 8,
    "num_experts_per_tok": 2,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "torch_dtype": "bfloat16",
}


def build(ep_size: int = 1, tp_size: int = 1, **changes: object) -> tuple[SweepSpec, list[str]]:
    config = {key: value for key, value in {**MIXTRAL, **changes}.items() if value != "absent"}
    return spec_from_config(config, name="tiny", ep_size=ep_size, tp_size=tp_size)


def test_plain_config() -> None:
    spec, notes = build()
    assert notes == []
    expert = spec.experts["expert"]
    assert (expert.d_model, expert.d_ff, expert.activation) == (256, 512, "swiglu")
    assert (expert.dtype, expert.quantisation) == ("bfloat16", "none")
    attention = spec.experts["attention"]
    assert (attention.n_heads, attention.n_kv_heads, attention.head_dim) == (8, 2, 32)
    assert attention.context_len == 2048
    assert [(run.expert, run.count) for run in spec.moe[0].experts] == [("expert", 8)]
    assert spec.moe[0].top_k == 2
    assert all(entry.cache == ["cold"] for entry in (*spec.measure, *spec.layer))


def test_token_counts_cover_decode_and_prefill() -> None:
    spec, _ = build()
    tokens = spec.measure[0].tokens
    assert (tokens[0], tokens[-1]) == (1, 4096)
    assert tokens == sorted(set(tokens))
    assert all(after <= 2 * before for before, after in itertools.pairwise(tokens))


def test_layers_are_balanced_skewed_and_with_few_active() -> None:
    spec, _ = build()
    ours = [entry for entry in spec.layer if entry.kernel is None]
    assert [entry.distributions for entry in ours] == [
        ["balanced", "zipf-1.2"],
        ["active-2", "active-4"],
        ["zipf-1.0"],
    ]


def test_layers_have_baselines_beside_them() -> None:
    scenarios = make_plan(build()[0], "cuda").scenarios
    layers = [s for s in scenarios if s.op == "layer"]
    by_kernel = dict.fromkeys(("grouped_mm_swiglu", "grouped_swiglu"), 0)
    for layer in layers:
        function = layer.kernel.name.rpartition(":")[2]
        by_kernel[function] = by_kernel.get(function, 0) + 1
    assert by_kernel["grouped_mm_swiglu"] == 13 + 3
    assert by_kernel["grouped_swiglu"] >= 6
    compared = {s.tokens for s in layers if s.kernel.name.endswith("grouped_mm_swiglu")}
    assert compared == {2**p for p in range(13)}


@pytest.mark.parametrize("preset", [name for name in preset_names() if "cpu" not in name])
def test_every_named_model_can_be_measured_on_a_gpu_in_minutes(preset: str) -> None:
    spec, _ = load_preset(preset)
    plan = make_plan(spec, "cuda")
    assert plan.estimated_s() < 240
    layers = [s for s in plan.scenarios if s.op == "layer"]
    assert {s.layer.distribution for s in layers if s.layer} >= {"balanced", "zipf-1.0", "zipf-1.2"}
    assert {s.tokens for s in layers} >= {1, 4096}
    assert all(s.cache_state == "cold" for s in plan.scenarios)


def test_the_price_of_one_more_expert_is_measured_from_top_k_to_all() -> None:
    spec, _ = load_preset("Qwen3-30B-A3B")
    active = {
        sum(count > 0 for count in s.layer.counts)
        for s in make_plan(spec, "cuda").scenarios
        if s.layer and s.tokens == 16
    }
    assert active >= {8, 16, 32, 64, 128}


def test_every_expert_active_at_once_needs_no_study_of_few() -> None:
    spec, _ = build(num_local_experts=2)
    distributions = [name for entry in spec.layer for name in entry.distributions]
    assert not any(name.startswith("active") for name in distributions)


@pytest.mark.parametrize(
    ("changes", "expert"),
    [
        ({"num_local_experts": "absent", "num_experts": 8, "moe_intermediate_size": 64}, 64),
        ({"num_local_experts": "absent", "n_routed_experts": 8, "moe_intermediate_size": 96}, 96),
        ({"hidden_size": 384}, 512),
        ({"moe_intermediate_size": [128, 128]}, 128),
    ],
)
def test_key_names_of_the_families(changes: dict[str, object], expert: int) -> None:
    spec, _ = build(**changes)
    assert spec.experts["expert"].d_ff == expert


def test_language_part_of_a_multimodal_config() -> None:
    config = {"model_type": "two_towers", "text_config": MIXTRAL, "vision_config": {}}
    spec, _ = spec_from_config(config, name="tiny")
    assert spec.experts["expert"].d_model == 256


def test_shards() -> None:
    spec, _ = build(ep_size=2, tp_size=2)
    assert spec.experts["expert"].d_ff == 256
    assert spec.experts["attention"].n_heads == 4
    assert spec.experts["attention"].n_kv_heads == 1
    layer = spec.layer[0]
    assert (layer.experts, layer.top_k, layer.ep_size, layer.tp_size) == (4, 2, 2, 2)
    assert all((each.ep_size, each.tp_size) == (2, 2) for each in spec.layer)
    for planned in make_plan(spec, "cuda").scenarios:
        if planned.layer is not None:
            # Every rank brings `tokens`: what they deal to one rank's experts adds up to as much.
            assert sum(planned.layer.counts) == planned.tokens * 2
            assert planned.expert.d_ff * planned.layer.tp_size == 512
            assert planned.layer.experts * planned.layer.ep_size == 8
    assert spec.moe[0].experts[0].count == 8, "the router still chooses among all experts"


def test_more_ranks_than_kv_heads() -> None:
    spec, _ = build(tp_size=4)
    assert spec.experts["attention"].n_kv_heads == 1


@pytest.mark.parametrize("ep", [1, 2, 4, 8])
@pytest.mark.parametrize("tp", [1, 2, 8])
def test_shards_add_up_and_can_be_planned(ep: int, tp: int) -> None:
    if ep > 4:
        with pytest.raises(InputError, match="use an ep of at most 4"):
            build(ep_size=ep, tp_size=tp)
        return
    spec, _ = build(ep_size=ep, tp_size=tp)
    assert spec.experts["expert"].d_ff * tp == 512
    assert spec.layer[0].experts * ep == 8
    planned = {(s.op, s.tokens) for s in make_plan(spec, "cuda").scenarios}
    assert {("expert", 1), ("expert", 4096), ("layer", 4096), ("attention", 1)} <= planned


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"torch_dtype": "absent"}, "no dtype is stated: measured as bfloat16"),
        ({"torch_dtype": "float8_e4m3fn"}, "'float8_e4m3fn' is not one of ours"),
        ({"hidden_act": "absent"}, "no activation is stated"),
        ({"hidden_act": "gelu"}, "'gelu' is measured as SwiGLU"),
        ({"hidden_act": "relu2"}, "two matrices with ReLU"),
        ({"kv_lora_rank": 512}, "MLA"),
        ({"num_attention_heads": "absent"}, "no num_attention_heads is stated"),
        ({"sliding_window": 128}, "sliding window of 128"),
        ({"swiglu_limit": 7.0}, "clamp of gate and up to 7.0"),
        ({"model_type": "gpt_oss"}, "biases and attention sinks"),
        ({"first_k_dense_replace": 3}, "3 layers have a dense FFN"),
        ({"mlp_only_layers": [0, 5]}, "2 layers have a dense FFN"),
        ({"n_shared_experts": 1}, "of the routed experts' class"),
        ({"shared_expert_intermediate_size": 1024}, "measured as class 'shared'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "measured as fp8 with one scale"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "reads 3.76 times the bytes"),
        ({"quantization_config": {"quant_method": "new"}}, "new weights have no kernel here"),
        ({"intermediate_size": 2**22}, "one copy of a layer's 8 experts takes 48.0 GiB"),
    ],
)
def test_what_is_left_out_is_said(changes: dict[str, object], note: str) -> None:
    _, notes = build(**changes)
    assert any(note in said for said in notes), notes
    assert all("\n" not in said for said in notes)


def test_unused_sliding_window_is_not_noted() -> None:
    assert build(sliding_window=128, use_sliding_window=False)[1] == []
    assert build(sliding_window=32768)[1] == []


def test_shared_expert_of_another_width_is_a_class() -> None:
    spec, _ = build(n_shared_experts=2, moe_intermediate_size=128)
    assert spec.experts["shared"].d_ff == 256
    assert [entry.ops for entry in spec.measure if entry.expert == "shared"] == [["expert"]]


@pytest.mark.parametrize(
    ("stated", "kind"),
    [
        ({"quant_method": "awq", "bits": 4}, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
        ({"quant_method": "fp8"}, "fp8"),
    ],
)
def test_packed_experts_have_packed_layers_and_dense_baselines(
    stated: dict[str, object], kind: str
) -> None:
    spec, _ = build(quantization_config=stated)
    assert spec.experts["expert"].quantisation == kind
    for device in ("cpu", "cuda"):
        layers = [s for s in make_plan(spec, device).scenarios if s.op == "layer"]
        for layer in layers:
            baseline = "torch_grouped" in layer.kernel.name
            assert layer.expert.quantisation == ("none" if baseline else kind)
        assert {layer.expert.quantisation for layer in layers} == {"none", kind}


def test_four_bit_shard_that_cannot_be_packed_is_dense() -> None:
    spec, notes = build(
        quantization_config={"quant_method": "gptq", "bits": 4}, tp_size=16, num_attention_heads=16
    )
    assert spec.experts["expert"].quantisation == "none"
    assert any("reads 4 times the bytes" in note for note in notes)


def test_attention_tokens_fit_in_memory() -> None:
    spec, _ = build(num_attention_heads=64, num_key_value_heads=64, head_dim=128)
    block = spec.experts["attention"]
    entry = next(entry for entry in spec.measure if entry.expert == "attention")
    cache_bytes = 2 * 2 * block.n_kv_heads * block.head_dim * block.context_len
    assert entry.tokens[-1] * cache_bytes <= 2**31 < 2 * entry.tokens[-1] * cache_bytes


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"num_local_experts": "absent"},
            "tiny is a dense model: none of num_local_experts, num_experts, n_routed_experts, "
            "moe_num_experts says otherwise; no sweep can be made of it; give the config of a "
            "Mixture-of-Experts model",
        ),
        ({"num_local_experts": 0}, "tiny is a dense model"),
        ({"num_experts_per_tok": "absent"}, "tiny has no num_experts_per_tok or"),
        ({"hidden_size": "absent"}, "tiny has no hidden_size or d_model"),
        ({"hidden_size": 0}, "hidden_size or d_model is 0"),
        ({"hidden_size": -4}, "tiny: hidden_size is -4, not one whole number"),
        ({"hidden_size": "256"}, "tiny: hidden_size is '256', not one whole number"),
        ({"hidden_size": True}, "tiny: hidden_size is True"),
        ({"moe_intermediate_size": [64, 128]}, r"moe_intermediate_size is \[64, 128\]"),
        ({"num_experts_per_tok": 9}, "top-k 9 is above its 8 experts"),
        ({"ep_size": 3}, r"ep 3 does not divide its 8 \(experts\)"),
        ({"tp_size": 3}, r"tp 3 does not divide its 512 \(expert width\)"),
        ({"tp_size": 0}, "tp is 0"),
        ({"tp_size": 16}, r"tp 16 does not divide its 8 \(attention heads\)"),
    ],
)
def test_configs_that_cannot_be_used(changes: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        build(**changes)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
