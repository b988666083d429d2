"""Generate the scripts of a run: one file a scenario, one that calls them in turn.

Templates choose *code* by op, device and timing mode, all from fixed lists. Everything a user or
a spec can name travels as data, in the JSON file beside each script.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import jinja2

from costprof.core.device import DeviceFingerprint
from costprof.core.files import write_json, write_text
from costprof.core.hashing import content_id
from costprof.profiler.cold import rotate_bytes
from costprof.profiler.plan import Run
from costprof.profiler.scenario import Scenario
from costprof.profiler.spec import TimingSpec

Mode = Literal["nvtx", "profiler", "clock"]

_SEED = 20_240
# A run may fill this share of the device's memory with copies.
_MEMORY_SHARE = 0.25


def write_scripts(
    run: Run,
    folder: Path,
    mode: Mode,
    timing: TimingSpec,
    device: DeviceFingerprint,
    *,
    uncapturable: Collection[str] = (),
) -> Path:
    """Write the scripts of `run` into `folder` and return the path of the run script.

    The scenarios whose ids are in `uncapturable` do not try to capture a CUDA graph.
    """
    for scenario in run.scenarios:
        path = folder / f"{scenario.scenario_id}.py"
        values = _values(scenario, timing, device)
        values["graph"] = scenario.scenario_id not in uncapturable
        write_json(path.with_suffix(".json"), values)
        write_text(path, _render("scenario.py.j2", scenario, mode))
    path = folder / f"{run.run_id}.py"
    write_json(
        path.with_suffix(".json"),
        {
            "scenarios": [scenario.scenario_id for scenario in run.scenarios],
            "passes": timing.passes,
            "threads": timing.threads,
        },
    )
    text = _environment().get_template("run.py.j2").render(device=run.scenarios[0].device)
    write_text(path, text + "\n")
    return path


def write_script(path: Path, template: str, values: dict[str, Any], **choices: str) -> None:
    """Write the script `path` from a template and `values` into the JSON file beside it."""
    write_json(path.with_suffix(".json"), values)
    write_text(path, _environment().get_template(template).render(**choices) + "\n")


def _render(template: str, scenario: Scenario, mode: Mode) -> str:
    text = _environment().get_template(template)
    return text.render(op=scenario.op, device=scenario.device, mode=mode) + "\n"


def _values(scenario: Scenario, timing: TimingSpec, device: DeviceFingerprint) -> dict[str, Any]:
    return {
        **scenario.to_dict(),
        "scenario_id": scenario.scenario_id,
        "label": scenario.label(),
        "operands_key": _operands_key(scenario),
        "seed": _SEED,
        "warmup": timing.warmup,
        "target_ms": timing.target_ms,
        "min_repetitions": timing.min_repetitions,
        "max_repetitions": timing.max_repetitions,
        "rotate_bytes": rotate_bytes(scenario, device),
        "memory_bytes": int(_MEMORY_SHARE * device.memory_bytes),
    }


def _operands_key(scenario: Scenario) -> str:
    """Scenarios with equal keys can share their copies of the weights."""
    return content_id(
        {
            "class": scenario.class_id,
            "experts": scenario.layer.experts if scenario.layer else 0,
            # An attention block's cache holds one entry per token.
            "tokens": scenario.tokens if scenario.op == "attention" else 0,
        }
    )


@lru_cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("costprof.profiler", "templates"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
    )
