"""Presets by name and configs by path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from costprof.core.errors import InputError
from costprof.profiler.plan import make_plan
from costprof.profiler.presets import load_preset, preset_names, spec_from_config_file

# d_model, d_ff, experts, top-k as published with each model.
MODELS = {
    "Mixtral-8x7B": (4096, 14336, 8, 2),
    "Qwen3-30B-A3B": (2048, 768, 128, 8),
    "OLMoE-1B-7B": (2048, 1024, 64, 8),
    "DeepSeek-V3": (7168, 2048, 256, 8),
    "gpt-oss-20b": (2880, 2880, 32, 4),
}


def test_names() -> None:
    assert set(preset_names()) == {*MODELS, "cpu-demo", "cpu-smoke"}


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    spec, _ = load_preset(name.upper())
    assert spec.name == name
    expert, moe = spec.experts["expert"], spec.moe[0]
    assert (expert.d_model, expert.d_ff, moe.experts[0].count, moe.top_k) == MODELS[name]
    assert len(make_plan(spec, "cuda").scenarios) >= 60


@pytest.mark.parametrize("name", ["cpu-demo", "cpu-smoke"])
def test_sweep_files(name: str) -> None:
    spec, notes = load_preset(name)
    assert spec.name == name
    assert notes == []
    assert make_plan(spec, "cpu").scenarios


def test_sharded_model() -> None:
    spec, notes = load_preset("deepseek-v3", ep_size=32)
    assert spec.layer[0].experts == 8
    assert not any("GiB" in note for note in notes)


def test_sharded_sweep_file() -> None:
    with pytest.raises(InputError, match="'cpu-smoke' is a sweep file, not a model"):
        load_preset("cpu-smoke", ep_size=2)


def test_unknown_name() -> None:
    with pytest.raises(InputError) as caught:
        load_preset("qwen3-30b")
    assert str(caught.value) == (
        "preset 'qwen3-30b' is unknown; nothing was planned; did you mean Qwen3-30B-A3B? There "
        f"are {', '.join(preset_names())}"
    )


def test_unknown_name_like_no_other() -> None:
    with pytest.raises(InputError, match="nothing was planned; There are cpu-demo"):
        load_preset("zzzzzz")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    folder = tmp_path / "Tiny-MoE"
    folder.mkdir()
    path = folder / "config.json"
    values = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_attention_heads": 2,
        "hidden_act": "silu",
        "dtype": "float16",
    }
    path.write_text(json.dumps(values))
    return path


def test_config_file(config: Path) -> None:
    spec, notes = spec_from_config_file(config)
    assert (spec.name, spec.experts["expert"].dtype, notes) == ("Tiny-MoE", "float16", [])


def test_config_file_that_names_its_model(config: Path) -> None:
    values = json.loads(config.read_text()) | {"_name_or_path": "someone/Small-MoE"}
    config.write_text(json.dumps(values))
    assert spec_from_config_file(config)[0].name == "Small-MoE"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hidden_size: 64", "is not JSON"),
        ("\x00\x01", "is not JSON"),
        ("[1, 2]", "holds a JSON list, not an object"),
        ("{}", "is a dense model"),
    ],
)
def test_config_file_that_cannot_be_used(config: Path, text: str, message: str) -> None:
    config.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        spec_from_config_file(config)
    assert str(config) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_config_file_of_bytes(config: Path) -> None:
    config.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not JSON"):
        spec_from_config_file(config)


def test_missing_config_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.json cannot be read"):
        spec_from_config_file(tmp_path / "absent.json")
