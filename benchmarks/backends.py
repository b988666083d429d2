"""Time the same scenarios by nsys, torch.profiler and the in-process clock, and compare them.

    python benchmarks/backends.py                       # the GPU if there is one, else the CPU
    python benchmarks/backends.py --repeats 5 --json --out backends.json

The backends take turns, in another order every round, so that a slow minute falls on all of them.
What is printed is each backend's median latency over that of the in-process backend in the same
round: the median of the rounds, and their smallest and largest. What is timed is not the same
thing everywhere: on a GPU the in-process backend times whole calls in a CUDA graph, the other two
the span from a call's first kernel to its last; on a CPU torch.profiler adds its own cost to every
operator. A backend that cannot work here is left out, and said so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from costprof.core.device import DeviceFingerprint, detect_device, software_versions
from costprof.core.errors import CostprofError
from costprof.core.files import write_json
from costprof.profiler.backends.base import Backend
from costprof.profiler.backends.choose import choose_backend
from costprof.profiler.dataset import read_measurements
from costprof.profiler.plan import Plan, Run, make_plan
from costprof.profiler.scenario import DeviceName
from costprof.profiler.spec import parse_spec
from costprof.profiler.sweep import Sweep

REFERENCE = "inprocess"
OTHERS = ("nsys", "torch-profiler")
TIMING = {"remeasure": 0, "target_ms": 150, "max_robust_cv": 100, "max_pass_disagreement": 100}
SPECS: dict[str, dict[str, Any]] = {
    "cpu": {
        "name": "backends-cpu",
        "experts": {"a": {"d_model": 512, "d_ff": 1024, "dtype": "float32"}},
        "measure": [{"expert": "a", "tokens": [1, 16, 64]}],
        "layer": [{"expert": "a", "experts": 8, "top_k": 2, "tokens": [16]}],
        "timing": {**TIMING, "threads": 1},
    },
    "cuda": {
        "name": "backends-cuda",
        "experts": {"a": {"d_model": 2048, "d_ff": 768}},
        "measure": [{"expert": "a", "tokens": [1, 16, 256, 4096]}],
        "layer": [
            {
                "expert": "a",
                "experts": 128,
                "top_k": 8,
                "tokens": [16, 256],
                "kernel": "costprof.runtime.kernels.torch_grouped_mm:grouped_mm_swiglu",
            }
        ],
        "timing": TIMING,
    },
}


class Silent:
    """No progress bar."""

    def process_begins(self, run: Run, scenarios: int, notes: Path) -> None: ...

    def run_ends(self, run: Run, statuses: dict[str, int]) -> None: ...


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    name: DeviceName = "cuda" if torch.cuda.is_available() else "cpu"
    if options.device == "cuda" and name == "cpu":
        print("no CUDA device is visible; leave --device out to compare on the CPU")
        return 3
    if options.device == "cpu":
        name = "cpu"
    device = detect_device("gpu" if name == "cuda" else "cpu")
    plan = make_plan(parse_spec(SPECS[name], source="benchmark"), name)
    backends, left_out = usable_backends(plan)
    rounds = []
    for index in range(options.repeats):
        order = [*backends[index % len(backends) :], *backends[: index % len(backends)]]
        rounds.append({backend.name: measure(plan, backend, device) for backend in order})
        print(f"round {index + 1} of {options.repeats} done", file=sys.stderr)
    report = {
        "device": device.to_dict(),
        "software": software_versions(),
        "tools": {backend.name: backend.tool_version for backend in backends},
        "left_out": left_out,
        "repeats": options.repeats,
        "scenarios": [
            figures(scenario.scenario_id, scenario.label(), rounds) for scenario in plan.scenarios
        ],
    }
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, report)
    print(json.dumps(report, indent=2) if options.json else as_text(report))
    return 0


def usable_backends(plan: Plan) -> tuple[list[Backend], dict[str, str]]:
    """The backends that work here, the reference first, and why others do not."""
    found, left_out = [], {}
    for name in (REFERENCE, *OTHERS):
        try:
            found.append(choose_backend(name, plan.device, plan.timing.max_repetitions))
        except CostprofError as error:
            left_out[name] = str(error)
    return found, left_out


def measure(plan: Plan, backend: Backend, device: DeviceFingerprint) -> dict[str, dict[str, Any]]:
    """One sweep by one backend; rows by scenario."""
    with tempfile.TemporaryDirectory(prefix="costprof-") as scratch:
        folder = Path(scratch)
        Sweep(plan, folder, backend, device, software_versions()).run(Silent())
        columns = ("latency_us_p50", "robust_cv", "timer", "kernel_sum_us", "error")
        rows = read_measurements(folder).to_pylist()
    return {row["scenario_id"]: {name: row[name] for name in columns} for row in rows}


def figures(scenario_id: str, label: str, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Latencies and ratios of one scenario, by backend."""
    result: dict[str, Any] = {"scenario": label}
    for name in rounds[0]:
        rows = [each[name][scenario_id] for each in rounds]
        latencies = [row["latency_us_p50"] for row in rows]
        if any(latency is None for latency in latencies):
            result[name] = {"error": next(row["error"] for row in rows if row["error"])}
            continue
        references = [each[REFERENCE][scenario_id]["latency_us_p50"] for each in rounds]
        ratios = [
            ours / theirs
            for ours, theirs in zip(latencies, references, strict=True)
            if theirs is not None
        ]
        result[name] = {
            "timer": rows[0]["timer"],
            "latency_us": spread(latencies),
            "ratio": spread(ratios) if ratios else None,
            "robust_cv": statistics.median(row["robust_cv"] for row in rows),
        }
    return result


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def as_text(report: dict[str, Any]) -> str:
    lines = [
        f"{report['device']['name']}, {report['repeats']} interleaved rounds; "
        f"ratios are to {REFERENCE} in the same round: median (smallest to largest)"
    ]
    for scenario in report["scenarios"]:
        lines.append(scenario["scenario"])
        for name in (REFERENCE, *OTHERS):
            row = scenario.get(name)
            if row is None:
                continue
            if "error" in row:
                lines.append(f"  {name:15} failed: {row['error']}")
                continue
            ratio = row["ratio"]
            compared = (
                f"{ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f})" if ratio else ""
            )
            lines.append(
                f"  {name:15} {row['timer']:16} {row['latency_us']['median']:10.1f} us"
                f"  CV {row['robust_cv']:6.1%}  {compared}"
            )
    lines += [f"{name} left out: {why}" for name, why in report["left_out"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
