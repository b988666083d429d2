"""Sweeps shipped under a name: sweep files, and public models by their dimensions."""

from __future__ import annotations

import difflib
import importlib.resources
import json
import tomllib
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from costprof.core.errors import InputError
from costprof.profiler.models import spec_from_config
from costprof.profiler.spec import SweepSpec, parse_spec
from costprof.profiler.stored_moe import StoredMoe, stored_moe

_PACKAGE = "costprof.data.presets"
_SUFFIXES = (".toml", ".json")


def preset_names() -> list[str]:
    """Return the names of all presets, sorted."""
    return sorted(_files(), key=str.lower)


def load_preset(name: str, *, ep_size: int = 1, tp_size: int = 1) -> tuple[SweepSpec, list[str]]:
    """Return the preset called `name` in any case, and notes on what it leaves out.

    Args:
        name: One of `preset_names()`.
        ep_size: Expert-parallel degree of a model; a sweep file has none.
        tp_size: Tensor-parallel degree of a model; a sweep file has none.

    Raises:
        InputError: there is no such preset, or the degrees do not fit it.
    """
    known, file = _found(name)
    if file.name.endswith(".json"):
        return spec_from_config(_json(file), name=known, ep_size=ep_size, tp_size=tp_size)
    if (ep_size, tp_size) != (1, 1):
        raise InputError(
            f"preset {known!r} is a sweep file, not a model",
            "it cannot be sharded by ep and tp",
            "leave the two out",
        )
    values = tomllib.loads(file.read_text(encoding="utf-8"))
    return parse_spec(values, source=f"preset {known}"), []


def model_names() -> list[str]:
    """Return the names of the presets that are models, sorted."""
    return [name for name in preset_names() if _files()[name].name.endswith(".json")]


def preset_moe(name: str) -> StoredMoe:
    """Return the routed experts, as stored, of the model called `name` in any case.

    Raises:
        InputError: there is no such preset, or it is a sweep file.
    """
    known, file = _found(name)
    if not file.name.endswith(".json"):
        raise InputError(
            f"preset {known!r} is a sweep file, not a model",
            "it names no MoE to price",
            f"use one of {', '.join(model_names())}",
        )
    return stored_moe(_json(file), known)


def moe_from_config_file(path: Path) -> StoredMoe:
    """Return the routed experts, as stored, of the model that a `config.json` describes.

    Raises:
        InputError: the file cannot be read, is no JSON object or describes no MoE.
    """
    config = _config(path)
    return stored_moe(config, _name(config, path))


def spec_from_config_file(
    path: Path, *, ep_size: int = 1, tp_size: int = 1
) -> tuple[SweepSpec, list[str]]:
    """Return the sweep for the experts of the model a `config.json` describes, and notes.

    The sweep is named after the model the config states, or after the file's folder.

    Raises:
        InputError: the file cannot be read, is no JSON object, describes no MoE, or the degrees
            do not divide its sizes.
    """
    config = _config(path)
    return spec_from_config(
        config, name=_name(config, path), source=str(path), ep_size=ep_size, tp_size=tp_size
    )


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror})", "nothing was read of it", "check the path"
        ) from error
    except ValueError as error:
        raise InputError(
            f"{path} is not JSON ({error})",
            "nothing was read of it",
            "give the config.json of a Hugging Face model",
        ) from error
    if not isinstance(config, dict):
        raise InputError(
            f"{path} holds a JSON {type(config).__name__}, not an object",
            "nothing was read of it",
            "give the config.json of a Hugging Face model",
        )
    return config


def _found(name: str) -> tuple[str, Traversable]:
    files = _files()
    by_lower = {known.lower(): known for known in files}
    known = by_lower.get(name.lower())
    if known is None:
        close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(by_lower[match] for match in close)}? " if close else ""
        raise InputError(
            f"preset {name!r} is unknown",
            "nothing was planned",
            f"{hint}There are {', '.join(preset_names())}",
        )
    return known, files[known]


def _json(file: Traversable) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return values


def _name(config: dict[str, Any], path: Path) -> str:
    stated = config.get("_name_or_path")
    if isinstance(stated, str) and (last := stated.rstrip("/").rpartition("/")[2]):
        return last
    if path.stem != "config":
        return path.stem
    return path.resolve().parent.name or "model"


def _files() -> dict[str, Traversable]:
    return {
        file.name.rpartition(".")[0]: file
        for file in importlib.resources.files(_PACKAGE).iterdir()
        if file.name.endswith(_SUFFIXES)
    }
