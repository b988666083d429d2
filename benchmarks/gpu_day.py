"""Measure a GPU at hand, most wanted first, writing each result as it comes.

    python benchmarks/gpu_day.py                 # goes on where an earlier run stopped
    python benchmarks/gpu_day.py --seconds 540   # starts no step it expects not to finish
    python benchmarks/gpu_day.py --device cpu    # a rehearsal on tiny shapes

Steps: the GPU tests; the two ceilings (copy bandwidth, bf16 matrix product); a sweep of each named
model's experts and layers, its cost table; counters. Results go to `data/measured/DEVICE/`, each
with the device's fingerprint. Clocks, power limits and modes are read, never set.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from costprof.core.device import DeviceFingerprint, detect_device, software_versions
from costprof.core.files import write_json

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("Qwen3-30B-A3B", "OLMoE-1B-7B", "Mixtral-8x7B", "gpt-oss-20b", "DeepSeek-V3")
EXPERT_PARALLEL = {"DeepSeek-V3": 16}
REPEATS = 20


@dataclass(frozen=True)
class Step:
    """Something to measure: done when `result` exists."""

    name: str
    result: Path
    expected_s: float
    run: Callable[[], None]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device is visible; try --device cpu for a rehearsal", file=sys.stderr)
        return 3
    device = detect_device("cpu" if options.device == "cpu" else "gpu")
    slug = re.sub(r"[^a-z0-9]+", "-", device.name.lower()).strip("-")
    out = options.out or ROOT / "data" / "measured" / slug
    began = time.monotonic()
    left_out = 0
    for step in steps(options.device, device, out):
        spent = time.monotonic() - began
        if step.result.exists():
            print(f"{step.name}: done before")
        elif options.dry_run or spent + step.expected_s > options.seconds:
            print(f"{step.name}: not run, about {step.expected_s:.0f} s")
            left_out += 1
        else:
            print(f"{step.name}: begins at {spent:.0f} s", flush=True)
            step.run()
            if not step.result.exists():
                print(f"{step.name}: left no result; the others go on", file=sys.stderr)
                left_out += 1
    return 1 if left_out and not options.dry_run else 0


def steps(device_name: str, device: DeviceFingerprint, out: Path) -> list[Step]:
    """Every step, most wanted first."""
    models = MODELS if device_name == "cuda" else ("cpu-smoke",)
    found = [
        Step(
            "GPU tests",
            out / "tests.txt",
            60,
            lambda: gpu_tests(out / "tests.txt"),
        ),
        Step(
            "ceilings",
            out / "ceilings.json",
            30,
            lambda: ceilings(device_name, device, out / "ceilings.json"),
        ),
    ]
    for model in models:
        folder = out / model
        found.append(
            Step(f"sweep {model}", folder / "table.parquet", 240, sweep_step(model, folder))
        )
    return found


def gpu_tests(result: Path) -> None:
    """Run what is marked `gpu` and keep what pytest printed."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "gpu", "-q", str(ROOT / "tests")],
        capture_output=True,
        text=True,
        check=False,
    )
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(done.stdout[-20_000:], encoding="utf-8")


def sweep_step(model: str, folder: Path) -> Callable[[], None]:
    """Sweep `model` into `folder`, counters included, and fit its cost table."""
    degree = EXPERT_PARALLEL.get(model)

    def run() -> None:
        sweep = ["sweep", "--preset", model, "--out", str(folder), "--resume", "--counters", "ncu"]
        if degree:
            sweep += ["--ep", str(degree)]
        table = str(folder / "table.parquet")
        for verb in (sweep, ["fit", str(folder), "--out", table, "--force"]):
            done = subprocess.run([sys.executable, "-m", "costprof.cli.main", *verb], check=False)
            if done.returncode:
                return

    return run


def ceilings(device_name: str, device: DeviceFingerprint, result: Path) -> None:
    """Measure a large copy and a large bf16 matrix product, medians with their spread."""
    on_gpu = device_name == "cuda"
    count, side = (2**31, 8192) if on_gpu else (2**24, 512)
    source = torch.randn(count // 4, device=device_name)
    target = torch.empty_like(source)
    copy_s = timed(lambda: target.copy_(source), on_gpu)
    left = torch.randn(side, side, device=device_name, dtype=torch.bfloat16)
    right = torch.randn(side, side, device=device_name, dtype=torch.bfloat16)
    product_s = timed(lambda: left @ right, on_gpu)
    write_json(
        result,
        {
            "device": device.to_dict(),
            "software": software_versions(),
            "copy_bytes_per_s": spread([2 * source.nbytes / s for s in copy_s]),
            "copy_counts": "bytes read plus bytes written",
            "bf16_matmul_flops": spread([2 * side**3 / s for s in product_s]),
            "bf16_matmul_side": side,
        },
    )
    print(json.dumps(json.loads(result.read_text()), indent=1))


def timed(call: Callable[[], object], on_gpu: bool) -> list[float]:
    """Seconds of each of `REPEATS` calls, by events on a GPU."""
    for _ in range(3):
        call()
    seconds = []
    for _ in range(REPEATS):
        if on_gpu:
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            seconds.append(start.elapsed_time(end) / 1e3)
        else:
            began = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - began)
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


if __name__ == "__main__":
    sys.exit(main())
