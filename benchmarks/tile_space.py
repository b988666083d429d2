"""Measure every tile config of the blocked CPU kernel, so that searches can be replayed on it.

    python benchmarks/tile_space.py --out out/tiles --rounds 20

Each round measures every config once, in a new random order: a slow minute of the machine falls
on all of them alike. One measurement is the median of some calls, as a sweep's is. By default the
clock is the CPU time of the one thread at work, which stands still while another process has the
core; on a machine that does nothing else it shows what `--clock wall` shows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from costprof.core.device import detect_device, software_versions
from costprof.core.expert import Dtype, ExpertClass
from costprof.core.files import write_json
from costprof.core.work import fc1_width
from costprof.runtime.experts import DTYPES
from costprof.runtime.kernels import torch_blocked


@dataclass(frozen=True)
class Problem:
    """One kernel on one shape. `held_out`: not looked at while the search was tuned."""

    name: str
    op: str
    d_model: int
    d_ff: int
    dtype: Dtype
    tokens: int
    held_out: bool = False

    @property
    def expert(self) -> ExpertClass:
        return ExpertClass(d_model=self.d_model, d_ff=self.d_ff, dtype=self.dtype)


CLOCKS = {"thread": time.thread_time, "wall": time.perf_counter}

# Weights fit a core's second-level cache: what a neighbour does to memory would otherwise be larger
# than what tells the best configs apart.
PROBLEMS = (
    Problem("fc1-bf16-40", "fc1", 512, 256, "bfloat16", 40),
    Problem("fc1-f32-40", "fc1", 256, 256, "float32", 40),
    Problem("fc1-bf16-200", "fc1", 512, 256, "bfloat16", 200, held_out=True),
    Problem("fc1-f32-96", "fc1", 384, 256, "float32", 96, held_out=True),
    Problem("swiglu-f32-24", "swiglu", 256, 256, "float32", 24, held_out=True),
    Problem("swiglu-bf16-100", "swiglu", 512, 256, "bfloat16", 100, held_out=True),
)


def configs_of(problem: Problem) -> list[dict[str, int]]:
    kernel: Any = getattr(torch_blocked, problem.op)
    space = kernel.tile_space
    every = (dict(zip(space, values, strict=True)) for values in itertools.product(*space.values()))
    return [config for config in every if kernel.tile_allowed(config, problem.expert)]


def measure(problem: Problem, rounds: int, seconds: float, seed: int, clock: str) -> dict[str, Any]:
    """Return configs and, per config, one (median µs, robust CV, calls) for each round."""
    expert = problem.expert
    generator = torch.Generator().manual_seed(seed)
    dtype = DTYPES[problem.dtype]
    shapes = [(fc1_width(expert), expert.d_model), (expert.d_model, expert.d_ff)]
    weights = [
        (torch.randn(shape, generator=generator) / math.sqrt(shape[1])).to(dtype)
        for shape in shapes
    ][: 1 if problem.op == "fc1" else 2]
    x = torch.randn(problem.tokens, expert.d_model, generator=generator).to(dtype)
    kernel = getattr(torch_blocked, problem.op)
    configs = configs_of(problem)
    measured: list[list[tuple[float, float, int]]] = [[] for _ in configs]
    draw = random.Random(seed)
    with torch.inference_mode():
        for round_number in range(rounds):
            order = list(range(len(configs)))
            draw.shuffle(order)
            for index in order:
                measured[index].append(_one(kernel, x, weights, configs[index], seconds, clock))
            print(f"{problem.name}: round {round_number + 1} of {rounds}", file=sys.stderr)
    return {
        "problem": asdict(problem),
        "device": detect_device("cpu").to_dict(),
        "software": software_versions(),
        "threads": torch.get_num_threads(),
        "clock": clock,
        "load_average": [round(each, 2) for each in os.getloadavg()],
        "configs": configs,
        "latency_us": [[value[0] for value in each] for each in measured],
        "robust_cv": [[value[1] for value in each] for each in measured],
        "calls": [[value[2] for value in each] for each in measured],
    }


def _one(
    kernel: Any,
    x: torch.Tensor,
    weights: list[torch.Tensor],
    config: dict[str, int],
    seconds: float,
    clock: str,
) -> tuple[float, float, int]:
    kernel(x, *weights, **config)  # warm
    times: list[float] = []
    now = CLOCKS[clock]
    while len(times) < 3 or (sum(times) < seconds and len(times) < 50):
        began = now()
        kernel(x, *weights, **config)
        times.append(now() - began)
    low, median, high = statistics.quantiles(times, n=4)
    return median * 1e6, (high - low) / median, len(times)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/tiles"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.005, help="of one measurement")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="thread")
    parser.add_argument("--problem", action="append", help="measure these alone")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for problem in PROBLEMS:
        if options.problem and problem.name not in options.problem:
            continue
        result = measure(problem, options.rounds, options.seconds, options.seed, options.clock)
        write_json(options.out / f"{problem.name}.json", result)
        print(json.dumps({"problem": problem.name, "configs": len(result["configs"])}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
