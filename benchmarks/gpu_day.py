"""Measure a GPU at hand, most wanted first, writing each result as it comes.

    python benchmarks/gpu_day.py                 # goes on where an earlier run stopped
    python benchmarks/gpu_day.py --seconds 540   # starts no step it expects not to finish
    python benchmarks/gpu_day.py --only ceilings --only "sweep Qwen3-30B-A3B"
    python benchmarks/gpu_day.py --device cpu    # a rehearsal on tiny shapes
    python benchmarks/gpu_day.py --dry-run       # the steps, and how each stands; needs no GPU

Steps, in this order: the GPU tests; the two ceilings (copy bandwidth, bf16 matrix product); a sweep
of each named model's experts and layers with its cost table, and its layers against the ceilings;
energy of the scenarios that matter most; routers, and top-k against each policy on routed traces,
in time and joules; counters; launches compared; a trace of heating up and cooling down; vLLM's
fused experts where vLLM is installed; backends compared, nsys with CUDA tracing among them; tile
configs searched; routing of the other models; energy of more scenarios, some sixty in all.

A step is done when its result holds what was wanted. One that is refused or fails stops no other;
it leaves a record with the reason, is tried again by the next run, and is named at the end, with
exit code 1. Results go to `data/measured/DEVICE/`, each with the device's fingerprint. Clocks,
power limits and modes are read, never set.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import torch
from gpu_steps.listing import Day
from gpu_steps.running import run_steps, show

from costprof.core.device import detect_device

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--only", action="append", metavar="STEP", help="run only this step")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    here = options.device == "cpu" or torch.cuda.is_available()
    if not here and not options.dry_run:
        print("no CUDA device is visible; try --device cpu for a rehearsal", file=sys.stderr)
        return 3
    device = detect_device("cpu" if options.device == "cpu" else "gpu") if here else None
    name = device.name if device else "gpu"
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    out = options.out or ROOT / "data" / "measured" / slug
    steps = Day(options.device, device, out).steps()
    only = options.only or ()
    unknown = set(only) - {step.name for step in steps}
    if unknown:
        print(f"no step is called {min(unknown)!r}; see --dry-run", file=sys.stderr)
        return 2
    if options.dry_run:
        show(steps, only)
        return 0
    return run_steps(steps, only=only, seconds=options.seconds)


if __name__ == "__main__":
    sys.exit(main())
