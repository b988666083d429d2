"""What single steps do; each leaves a result only where it holds what was wanted."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from costprof.core.files import write_json, write_text
from costprof.profiler.dataset import read_measurements
from gpu_steps.children import BENCHMARKS, ROOT, costprof, script
from gpu_steps.running import Refused
from gpu_steps.specs import EXPERT_PARALLEL, vllm_spec, write_spec

INPROCESS = ("--backend", "inprocess")
_CPU_LAYER = "%torch_grouped:grouped%"


def gpu_tests(result: Path, folder: Path = ROOT / "tests") -> None:
    """Run what is marked `gpu` in `folder`; done where all passed, and some did run."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "gpu", "-q", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout[-20_000:] + done.stderr[-2_000:]
    lines = [line for line in said.splitlines() if line.strip()]
    last = lines[-1] if lines else "pytest printed nothing"
    print(last)
    if done.returncode != 0 or not re.search(r"\b[1-9]\d* passed", last):
        kept = result.with_stem("tests-failed")
        write_text(kept, said)
        raise Refused(f"{last}; see {kept.name}")
    write_text(result, said)


def sweep_and_fit(model: str, folder: Path) -> None:
    """Time the scenarios of `model` in CUDA graphs, or by the clock, and fit its cost table."""
    costprof(*sweep_command(model, folder))
    fit(folder)


def fit(folder: Path) -> None:
    """Fit the cost table of the dataset `folder` anew."""
    costprof("fit", str(folder), "--out", str(folder / "table.parquet"), "--force")


def sweep_command(model: str, folder: Path, *options: str) -> list[str]:
    """`costprof sweep` of `model`, going on with what is in `folder`."""
    degree = EXPERT_PARALLEL.get(model)
    shard = ["--ep", str(degree)] if degree else []
    command = ["sweep", "--preset", model, "--out", str(folder), "--resume"]
    return [*command, *INPROCESS, *shard, *options]


def vllm_missing() -> str | None:
    """Why vLLM cannot be measured, None where it is installed."""
    return None if importlib.util.find_spec("vllm") else "vLLM is not installed"


def vllm_layers(model: str, folder: Path, ceilings_file: Path, result: Path) -> None:
    """Time our layers of `model` beside vLLM's fused experts."""
    spec = folder / "spec.toml"
    if not spec.exists():
        write_spec(spec, vllm_spec(model))
    costprof("sweep", str(spec), "--out", str(folder), "--resume", *INPROCESS)
    report = against_ceilings(folder, ceilings_file)
    if all(row["of_vllm"] is None for row in report["rows"]):
        errors = {
            row["error"]
            for row in read_measurements(folder).to_pylist()
            if "vllm" in row["kernel"] and row["error"]
        }
        raise Refused("no layer was run by both kernels: " + "; ".join(sorted(errors)[:2]))
    write_json(result, report)


def layers_against_ceilings(folder: Path, ceilings_file: Path, result: Path) -> None:
    """Set the layers of a dataset against the measured ceilings."""
    report = against_ceilings(folder, ceilings_file)
    if not report["rows"]:
        raise Refused(f"no layer of ours passed the quality gate ({report['left_out']} did not)")
    write_json(result, report)


def against_ceilings(folder: Path, ceilings_file: Path) -> dict[str, Any]:
    """Return the report of `against_ceilings.py`, on a CPU about the kernel that it has."""
    if not ceilings_file.exists():
        raise Refused("the ceilings are not measured")
    device = json.loads(ceilings_file.read_text(encoding="utf-8"))["device"]
    ours = ("--ours", _CPU_LAYER) if device["kind"] == "cpu" else ()
    options = (str(folder), "--ceilings", str(ceilings_file), "--json", *ours)
    report: dict[str, Any] = json.loads(script("against_ceilings.py", *options, keep=True))
    return report


def counters(sweep: list[str], folder: Path, result: Path) -> None:
    """Read counters of twenty scenarios of a `sweep`; done where a row of its dataset has some."""
    report = json.loads(costprof(*sweep, "--counters", "ncu:20", "--json", keep=True))
    counted = sum(bool(row["counters"]) for row in read_measurements(folder).to_pylist())
    if not counted:
        raise Refused("; ".join(report["notes"]) or "no row of the dataset has counters")
    write_json(result, {**report, "rows_with_counters": counted})


def tile_search(folder: Path, *, on_gpu: bool) -> None:
    """Search the tile configs of the layers of one model, or of a blocked CPU kernel."""
    spec = BENCHMARKS / ("tiles_gpu.toml" if on_gpu else "tiles_cpu.toml")
    # Every config is compiled for both projections: seconds each.
    search = ("--search", "tiles", "--search-budget", "0.02")
    options = (*INPROCESS, *search, "--json", "--resume")
    said = costprof("sweep", str(spec), "--out", str(folder), *options, keep=True)
    winners = json.loads(said)["tiles"]
    if all(winner["config"] is None for winner in winners):
        raise Refused("no tile config ran")
    write_text(folder / "search.json", said)


def route(table: Path, batch: int, result: Path) -> None:
    """Run a layer, routing and all, under plain top-k and under the table's policy."""
    write_text(result, costprof("route", str(table), "--tokens", str(batch), "--json", keep=True))
