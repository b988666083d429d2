"""What `costprof sweep` was asked to measure, and on which device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from costprof.cli.console import error_line
from costprof.core.errors import InputError

if TYPE_CHECKING:
    from costprof.profiler.scenario import DeviceName
    from costprof.profiler.spec import SweepSpec


def sweep_spec(
    path: Path | None,
    preset: str | None,
    model_config: Path | None,
    from_model: str | None,
    ep: int,
    tp: int,
) -> SweepSpec:
    """Return the sweep that a file, a preset, a config.json or a model asks for, noting its limits.

    Raises:
        InputError: none or several were given, or the one cannot be read.
    """
    given = [value for value in (path, preset, model_config, from_model) if value is not None]
    if len(given) != 1:
        raise InputError(
            f"{len(given)} of SPEC, --preset, --model-config and --from-model were given",
            "it is not clear what to measure",
            "give exactly one, for example --preset cpu-demo",
        )
    if (ep, tp) != (1, 1) and preset is None and model_config is None:
        raise InputError(
            "--ep and --tp shard a named model or a config.json",
            "nothing was planned",
            "leave them out, or write the shard's sizes into the sweep file",
        )
    if path is not None:
        from costprof.profiler.spec import load_spec

        return load_spec(path)
    notes: list[str]
    if preset is not None:
        from costprof.profiler.presets import load_preset

        spec, notes = load_preset(preset, ep_size=ep, tp_size=tp)
    elif model_config is not None:
        from costprof.profiler.presets import spec_from_config_file

        spec, notes = spec_from_config_file(model_config, ep_size=ep, tp_size=tp)
    else:
        from costprof.profiler.from_model import spec_from_model

        spec, notes = spec_from_model(str(from_model))
    for note in notes:
        error_line(f"note: {note}")
    return spec


def device_to_measure(name: str, *, planning: bool) -> DeviceName:
    """Which device to measure; a plan for a GPU can be made anywhere.

    Raises:
        InputError: the name is unknown, or a GPU is to be measured where there is none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"device {name!r} is unknown", "nothing was measured", "use cpu or cuda")
    if name == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available() or (name == "cuda" and planning):
        return "cuda"
    if name == "cuda":
        raise InputError(
            "torch sees no CUDA device",
            "nothing was measured",
            "see costprof doctor, or measure the CPU with --device cpu",
        )
    return "cpu"
