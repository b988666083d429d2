"""A checkpoint comes back as written, rounded to bfloat16; anything else is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from costprof.core.errors import InputError
from costprof.runtime.small_lm.checkpoint import load_checkpoint, read_manifest, save_checkpoint
from costprof.runtime.small_lm.model import SmallLM


@pytest.fixture
def saved(model: SmallLM, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_checkpoint(
        model,
        path,
        command="train",
        training={"steps": 3},
        corpus={"files_sha256": "ab"},
        bits_per_byte={"dev": {"c": 2.5}},
    )
    return path


def test_weights_and_manifest_come_back(model: SmallLM, saved: Path, tokens: Tensor) -> None:
    loaded, manifest = load_checkpoint(saved)
    assert manifest.config == model.config
    assert manifest.weights_bytes == saved.stat().st_size
    assert (manifest.command, manifest.training) == ("train", {"steps": 3})
    assert manifest.bits_per_byte == {"dev": {"c": 2.5}}
    for name, value in model.state_dict().items():
        wanted = value.to(torch.bfloat16).float()
        torch.testing.assert_close(loaded.state_dict()[name], wanted, rtol=0, atol=0)
    rounded = model.float()
    rounded.load_state_dict({k: v.bfloat16().float() for k, v in model.state_dict().items()})
    torch.testing.assert_close(loaded(tokens), rounded(tokens), rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_a_flipped_bit_and_a_cut_file_are_refused(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    content[-1] ^= 1
    saved.write_bytes(content)
    with pytest.raises(InputError, match="is not the file its manifest"):
        load_checkpoint(saved)
    saved.write_bytes(content[:-1])
    with pytest.raises(InputError, match="bytes, not"):
        load_checkpoint(saved)
    saved.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        load_checkpoint(saved)


def reseal(path: Path, **config: int) -> None:
    """Make the manifest vouch for whatever the file holds now."""
    fields = json.loads(path.with_suffix(".json").read_text())
    fields["weights_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    fields["weights_bytes"] = path.stat().st_size
    fields["config"] |= config
    path.with_suffix(".json").write_text(json.dumps(fields))


def lose(tensors: dict[str, Tensor]) -> None:
    del tensors["head.weight"]


def widen(tensors: dict[str, Tensor]) -> None:
    tensors["head.weight"] = torch.zeros(256, 17)


def count(tensors: dict[str, Tensor]) -> None:
    tensors["head.weight"] = torch.zeros(256, 16, dtype=torch.int64)


def add(tensors: dict[str, Tensor]) -> None:
    tensors["more"] = torch.zeros(1)


@pytest.mark.parametrize("damage", [lose, widen, count, add])
def test_weights_of_another_model_are_refused(
    saved: Path, damage: Callable[[dict[str, Tensor]], None]
) -> None:
    tensors = load_file(saved)
    damage(tensors)
    save_file(tensors, saved)
    reseal(saved)
    with pytest.raises(InputError, match="holds weights"):
        load_checkpoint(saved)


def test_a_manifest_of_other_sizes_is_refused_before_memory_is_taken(saved: Path) -> None:
    reseal(saved, d_ff=2**14, n_experts=2**14, d_model=2**14)
    with pytest.raises(InputError, match="another model"):
        load_checkpoint(saved)


def test_a_file_that_is_no_safetensors_is_refused(saved: Path) -> None:
    saved.write_bytes(b"\xff" * 64)
    reseal(saved)
    with pytest.raises(InputError, match="no safetensors"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 2"),
        ({"config": {"d_model": 0}}, "sizes"),
        ({"config": {"width": 3}}, "no manifest"),
        ({"config": 5}, "no manifest"),
        ({"weights_bytes": 2**40}, "no size"),
        ({"weights_sha256": None}, "no size"),
        ({"other": 1}, "no manifest"),
    ],
)
def test_a_wrong_manifest_is_refused(saved: Path, change: dict[str, object], message: str) -> None:
    path = saved.with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        read_manifest(path)
