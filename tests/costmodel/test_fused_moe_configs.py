"""The exported file against the look-up rules of vLLM and SGLang, stated anew here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import runner

from costprof.core.device import DeviceFingerprint
from costprof.core.errors import InputError, TableError
from costprof.core.expert import ExpertClass, Kernel
from costprof.costmodel.fused_moe_configs import fused_moe_file
from costprof.costmodel.manifest import Manifest, MoeSpec, TiledLayer
from costprof.costmodel.rows import TableRow, rows_table
from costprof.costmodel.tablefile import write_table

GPU = DeviceFingerprint(kind="gpu", name="NVIDIA H100 80GB HBM3")
EXPERT = ExpertClass(d_model=2048, d_ff=768, dtype="bfloat16")
KERNEL = Kernel(name="kernels:expert")
KEYS = {
    *("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K"),
    *("GROUP_SIZE_M", "num_warps", "num_stages"),
}


def config(block_m: int, **other: int) -> dict[str, int]:
    plain = {"BLOCK_M": block_m, "BLOCK_N": 128, "BLOCK_K": 64, "GROUP_M": 8}
    return {**plain, "num_warps": 4, "num_stages": 3, **other}


def expert_row(expert: ExpertClass, tokens: int, us: float, tiles: dict[str, int]) -> TableRow:
    return TableRow(
        expert=expert,
        kernel=dataclasses.replace(KERNEL, config=tiles),
        tokens=tokens,
        latency_us=(us, us, us),
        energy_mj=(1.0, 1.0, 1.0),
        power_w=1.0,
        temp_rise_c=0.0,
    )


def layer(tokens: int, *configs: dict[str, int], **other: Any) -> TiledLayer:
    values: dict[str, Any] = {
        "class_fields": EXPERT.to_dict(),
        "kernel": "kernels:layer",
        "cache_state": "cold",
        "experts": 128,
        "top_k": 8,
        "distribution": "balanced",
        "tokens": tokens,
        "configs": tuple((each, 10.0 + n) for n, each in enumerate(configs)),
        "tried": len(configs),
    }
    return TiledLayer(**{**values, **other})


@pytest.fixture
def make(make_manifest: Callable[..., Manifest]) -> Callable[..., tuple[Any, Manifest]]:
    """Return a maker of rows and manifest of 128 experts: fast with BLOCK_M like the tokens."""

    def made(
        expert: ExpertClass = EXPERT,
        layers: tuple[TiledLayer, ...] = (),
        device: DeviceFingerprint = GPU,
        tiles: Callable[[int], dict[str, int]] = config,
    ) -> tuple[Any, Manifest]:
        rows = [
            expert_row(expert, tokens, 100.0 + abs(block - tokens), tiles(block))
            for tokens in (1, 16, 64, 256)
            for block in (16, 64, 128)
        ]
        moe = MoeSpec(name="many", top_k=8, class_of_expert=(rows[0].class_id,) * 128)
        manifest = make_manifest(
            moes=(moe,), device=device, software={"torch": "2.13.0", "triton": "3.6.0"}
        )
        return rows_table(rows), dataclasses.replace(manifest, tiled_layers=layers)

    return made


def vllm_name(experts: int, n: int, device: str, dtype: str | None, block: list[int] | None) -> str:
    """vLLM's rule for the name: device with _, H200s as one, dtype and block shape if there."""
    gpu = "_".join(device.split(" "))
    if "H200" in gpu.split("_"):
        gpu = "NVIDIA_H200"
    parts = [f"E={experts}", f"N={n}", f"device_name={gpu}"]
    parts += [f"dtype={dtype}"] if dtype else []
    parts += [f"block_shape={str(block).replace(' ', '')}"] if block and all(block) else []
    return ",".join(parts) + ".json"


def vllm_config(text: str, batch: int) -> dict[str, int]:
    """vLLM's rule for the content: whole numbers as keys, the nearest one to the batch."""
    by_tokens = {int(key): value for key, value in json.loads(text).items()}
    config: dict[str, int] = by_tokens[min(by_tokens, key=lambda tokens: abs(tokens - batch))]
    return config


def test_layers_give_the_configs_where_there_are_any(
    make: Callable[..., tuple[Any, Manifest]],
) -> None:
    layers = (
        layer(16, config(16), config(64)),
        layer(1024, config(128), config(64)),
        layer(64, config(32), distribution="zipf-1.2"),
        layer(64, config(256), experts=64),
    )
    made = fused_moe_file(*make(layers=layers), format="vllm")
    assert made.path == vllm_name(128, 768, GPU.name, None, None)
    assert list(made.configs) == ["16", "1024"]
    assert made.source == "balanced layers, cold weights, by kernels:layer"
    text = json.dumps(made.configs)
    for batch, block in ((1, 16), (16, 16), (519, 16), (521, 128), (9999, 128)):
        found = vllm_config(text, batch)
        assert found["BLOCK_SIZE_M"] == block
        assert set(found) == KEYS
        assert all(type(value) is int for value in found.values())


def test_experts_give_them_as_in_balanced_batches(
    make: Callable[..., tuple[Any, Manifest]],
) -> None:
    made = fused_moe_file(*make(), format="vllm")
    # n tokens an expert are 16 n of the layer; one token each is also the smallest batch.
    blocks = {tokens: each["BLOCK_SIZE_M"] for tokens, each in made.configs.items()}
    assert blocks == {"1": 16, "256": 16, "1024": 64, "4096": 128}
    assert "balanced" in made.source
    assert vllm_config(json.dumps(made.configs), 700)["BLOCK_SIZE_M"] == 64


@pytest.mark.parametrize(
    ("change", "options", "dtype", "block"),
    [
        ({"dtype": "float32"}, {}, "float32", None),
        ({"dtype": "float16"}, {}, None, None),
        ({"quantisation": "int4"}, {}, "int4_w4a16", None),
        ({}, {"dtype": "fp8_w8a8"}, "fp8_w8a8", None),
        ({}, {"dtype": "fp8_w8a8", "block_shape": (128, 128)}, "fp8_w8a8", [128, 128]),
        ({"quantisation": "int4"}, {"block_shape": (0, 64)}, "int4_w4a16", [0, 64]),
        ({"dtype": "float32"}, {"dtype": "none"}, None, None),
    ],
)
def test_the_name_says_how_weights_are_stored(
    make: Callable[..., tuple[Any, Manifest]],
    change: dict[str, Any],
    options: dict[str, Any],
    dtype: str | None,
    block: list[int] | None,
) -> None:
    expert = dataclasses.replace(EXPERT, **change)
    made = fused_moe_file(*make(expert), format="vllm", **options)
    assert made.path == vllm_name(128, 768, GPU.name, dtype, block)
    wanted = {*KEYS, "SPLIT_K"} if dtype == "int4_w4a16" else KEYS
    assert all(set(each) == wanted for each in made.configs.values())


def test_weights_that_no_sweep_measures_have_no_file(
    make: Callable[..., tuple[Any, Manifest]],
) -> None:
    expert = dataclasses.replace(EXPERT, quantisation="fp8_block")
    with pytest.raises(TableError, match="fp8_block, which is priced but never swept"):
        fused_moe_file(*make(expert), format="vllm")


def test_gpus_of_the_h200_family_share_a_name_in_vllm_alone(
    make: Callable[..., tuple[Any, Manifest]],
) -> None:
    device = dataclasses.replace(GPU, name="NVIDIA H200 NVL")
    vllm = fused_moe_file(*make(device=device), format="vllm")
    assert vllm.path == "E=128,N=768,device_name=NVIDIA_H200.json"
    sglang = fused_moe_file(
        *make(device=device), format="sglang", dtype="fp8_w8a8", block_shape=(128, 128)
    )
    assert sglang.path == (
        "configs/triton_3_6_0/E=128,N=768,device_name=NVIDIA_H200_NVL,"
        "dtype=fp8_w8a8,block_shape=[128, 128].json"
    )
    assert {int(tokens) for tokens in sglang.configs} == {1, 256, 1024, 4096}


def test_configs_their_kernel_does_not_take_are_passed_over(
    make: Callable[..., tuple[Any, Manifest]],
) -> None:
    layers = (layer(16, config(128, persistent=1), config(64, persistent=0), config(16)),)
    made = fused_moe_file(*make(layers=layers), format="vllm")
    assert made.configs["16"]["BLOCK_SIZE_M"] == 64
    assert set(made.configs["16"]) == KEYS


def test_a_rank_of_an_expert_parallel_layer_is_named_and_keyed_as_it_looks_up(
    make: Callable[..., tuple[Any, Manifest]],
) -> None:
    # A rank of 16 holds 8 of the 128 experts, and is given the tokens of all 16.
    layers = (layer(1, config(16), experts=8), layer(64, config(64), experts=8))
    made = fused_moe_file(*make(layers=layers), format="vllm")
    assert made.path == vllm_name(8, 768, GPU.name, None, None)
    assert {m: each["BLOCK_SIZE_M"] for m, each in made.configs.items()} == {"16": 16, "1024": 64}


def test_refusals_say_what_is_missing(
    make: Callable[..., tuple[Any, Manifest]], cpu: DeviceFingerprint
) -> None:
    with pytest.raises(TableError, match=r"holds no config of BLOCK_M, .*; no file was written"):
        fused_moe_file(*make(tiles=lambda block: {"BLOCK_M": block}), format="vllm")
    with pytest.raises(TableError, match="no GPU; no file was written"):
        fused_moe_file(*make(device=cpu), format="vllm")
    with pytest.raises(InputError, match="--dtype 'fp7' is unknown"):
        fused_moe_file(*make(), format="vllm", dtype="fp7")
    rows, manifest = make()
    with pytest.raises(TableError, match="does not say which triton"):
        fused_moe_file(rows, dataclasses.replace(manifest, software={}), format="sglang")
    two = MoeSpec(name="two", top_k=1, class_of_expert=("a", "b"))
    with pytest.raises(TableError, match="two has experts of 2 classes"):
        fused_moe_file(rows, dataclasses.replace(manifest, moes=(two,)), format="vllm")


def test_the_command_writes_the_file_a_server_loads(
    make: Callable[..., tuple[Any, Manifest]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    table = tmp_path / "t.parquet"
    write_table(table, *make())
    export = runner(monkeypatch, capfd, "table", "export", table, "--out", tmp_path / "tuned")
    first, again = export(), export()
    path = tmp_path / "tuned" / vllm_name(128, 768, GPU.name, None, None)
    assert vllm_config(path.read_text(), 1000)["BLOCK_SIZE_M"] == 64
    assert f"VLLM_TUNED_CONFIG_FOLDER={tmp_path / 'tuned'}" in first.stdout
    assert (first.returncode, again.returncode) == (0, 2)
    assert again.stderr == f"costprof: {path} exists; it was not overwritten; use --force\n"
