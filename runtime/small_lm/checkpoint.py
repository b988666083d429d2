"""A trained model on disk: weights as bfloat16 safetensors, and a JSON manifest beside them.

Nothing is unpickled, and nothing is believed: names, shapes, types, size and hash are compared
with the manifest before a weight is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from costprof.core.errors import InputError
from costprof.core.files import replacing, write_json
from costprof.runtime.small_lm.model import SmallLM, SmallLMConfig

SCHEMA = 1
_MOST_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelManifest:
    """What a checkpoint is and where it comes from.

    Attributes:
        config: Sizes of the model.
        weights_sha256: Of the safetensors file, `weights_bytes` long.
        command: The command that trained it.
        training: Steps, tokens, seed, loss weights, minutes, versions.
        corpus: Packages by version and hash, and the hash of all files used.
        bits_per_byte: By split, then domain.
    """

    config: SmallLMConfig
    weights_sha256: str
    weights_bytes: int
    command: str
    training: Mapping[str, Any]
    corpus: Mapping[str, Any]
    bits_per_byte: Mapping[str, Mapping[str, float]]


def save_checkpoint(
    model: SmallLM,
    path: Path,
    *,
    command: str,
    training: Mapping[str, Any],
    corpus: Mapping[str, Any],
    bits_per_byte: Mapping[str, Mapping[str, float]],
) -> ModelManifest:
    """Write weights, rounded to bfloat16, to `path` and the manifest to `path` with `.json`."""
    tensors = {
        name: value.detach().to(torch.bfloat16).contiguous()
        for name, value in model.state_dict().items()
    }
    content = save(tensors)
    manifest = ModelManifest(
        config=model.config,
        weights_sha256=hashlib.sha256(content).hexdigest(),
        weights_bytes=len(content),
        command=command,
        training=training,
        corpus=corpus,
        bits_per_byte=bits_per_byte,
    )
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    write_json(path.with_suffix(".json"), {"schema": SCHEMA, **asdict(manifest)})
    return manifest


def load_checkpoint(path: Path) -> tuple[SmallLM, ModelManifest]:
    """Load the model at `path` in float32, ready to evaluate, and its manifest.

    Raises:
        InputError: a file is missing, damaged, or is not what the manifest says.
    """
    manifest = read_manifest(path.with_suffix(".json"))
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size == manifest.weights_bytes else b""
    except OSError as error:
        raise _refusal(path, f"cannot be read ({error.strerror or error})") from error
    if size != manifest.weights_bytes:
        raise _refusal(path, f"has {size} bytes, not {manifest.weights_bytes}")
    if hashlib.sha256(content).hexdigest() != manifest.weights_sha256:
        raise _refusal(path, "is not the file its manifest was written for")
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise _refusal(path, f"is no safetensors file ({error})") from error
    with torch.device("meta"):
        model = SmallLM(manifest.config)
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    if {name: value.shape for name, value in tensors.items()} != wanted:
        raise _refusal(path, "holds weights of another model than its manifest says")
    if any(not value.is_floating_point() for value in tensors.values()):
        raise _refusal(path, "holds weights that are not floating point")
    model.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    return model.eval().requires_grad_(False), manifest


def read_manifest(path: Path) -> ModelManifest:
    """Read the manifest at `path`.

    Raises:
        InputError: it is missing, damaged or of another schema.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        schema = fields.pop("schema")
        if schema != SCHEMA:
            raise _refusal(path, f"has schema {schema}, not {SCHEMA}")
        manifest = ModelManifest(**{**fields, "config": SmallLMConfig(**fields["config"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _refusal(path, f"is no manifest of a model ({error})") from error
    sound = type(manifest.weights_bytes) is int and type(manifest.weights_sha256) is str
    if not (sound and 0 < manifest.weights_bytes <= _MOST_BYTES):
        raise _refusal(path, "gives no size and hash of the weights")
    return manifest


def _refusal(path: Path, fact: str) -> InputError:
    return InputError(
        f"{path} {fact}", "no model was loaded", "restore both files or train it again"
    )
