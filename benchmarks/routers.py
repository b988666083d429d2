"""How long routing itself takes: softmax and top-k, and `route` under each policy there is.

    python benchmarks/routers.py table.parquet --out routers.json

On the device of the cost table, at 1 to 256 tokens. On a GPU what can be captured is timed in CUDA
graphs, the rest by events, the host's part in it included (`timer` says which); on a CPU by the
clock. The callers take turns there and back, each measured twice; `disagreement` is how far the two
medians are apart. Logits are made up and differ from call to call.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_steps.policies import BATCHES, POLICIES, logits_of

from costprof.core.device import detect_device, software_versions
from costprof.core.errors import CostprofError
from costprof.core.files import write_json
from costprof.costmodel.table import CostTable
from costprof.profiler.cuda_graphs import event_times, graph_times, waits_for_device
from costprof.routing import Gate, route

BASELINE = "softmax + top-k"
LOGITS = 8  # batches that calls rotate through
TARGET_MS, CPU_CALLS, LEAST_CALLS, MOST_CALLS = 60.0, 400, 30, 800

Call = Callable[[], object]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    try:
        table = CostTable.load(options.table)
    except CostprofError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    on_gpu = table.manifest.device.kind == "gpu"
    torch.set_num_threads(1)
    with torch.inference_mode():
        figures, left_out = compare(table, torch.device("cuda" if on_gpu else "cpu"))
    write_json(
        options.out,
        {
            "moe": table.moe.name,
            "experts": table.n_experts,
            "top_k": table.moe.top_k,
            "device": detect_device("gpu" if on_gpu else "cpu").to_dict(),
            "software": software_versions(),
            "figures": figures,
            "left_out": left_out,
        },
    )
    for figure in figures:
        print(
            f"{figure['tokens']:>4} tokens  {figure['router']:<24} {figure['us']:9.1f} us "
            f"x{figure['ratio']:.2f}  {figure['timer']}"
        )
    return 0


def compare(table: CostTable, device: torch.device) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Time every router at every batch size."""
    figures: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    for tokens in BATCHES:
        logits = [each.to(device) for each in logits_of(table, tokens, LOGITS)]
        callers = routers(table, logits, left_out)
        readings: dict[str, list[dict[str, Any]]] = {name: [] for name in callers}
        for name in [*callers, *reversed(callers)]:
            readings[name].append(timed(callers[name], device))
        baseline_us = statistics.fmean(each["us"] for each in readings[BASELINE])
        for name, (first, second) in readings.items():
            us = (first["us"] + second["us"]) / 2
            figures.append(
                {
                    "tokens": tokens,
                    "router": name,
                    "us": us,
                    "us_p25": min(first["us_p25"], second["us_p25"]),
                    "us_p75": max(first["us_p75"], second["us_p75"]),
                    "disagreement": abs(first["us"] - second["us"]) / us,
                    "ratio": us / baseline_us,
                    "timer": first["timer"],
                }
            )
    return figures, left_out


def routers(
    table: CostTable, logits: Sequence[torch.Tensor], left_out: dict[str, str]
) -> dict[str, list[Call]]:
    """Calls of each router, one on each batch of logits; those that cannot decide are left out."""
    gate = Gate(top_k=table.moe.top_k)
    found: dict[str, list[Call]] = {
        BASELINE: [functools.partial(softmax_top_k, each, gate.top_k) for each in logits]
    }
    for name, policy in POLICIES.items():
        calls: list[Call] = [
            functools.partial(route, each, table=table, gate=gate, policy=policy) for each in logits
        ]
        try:
            calls[0]()
        except CostprofError as error:
            left_out[name] = str(error)
        else:
            found[f"route, {name}"] = calls
    return found


def softmax_top_k(logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a layer without policies does: weights and experts, [T, k] each."""
    scores, experts = torch.softmax(logits.float(), dim=-1).topk(top_k, dim=-1)
    return scores / scores.sum(dim=-1, keepdim=True), experts


def timed(calls: Sequence[Call], device: torch.device) -> dict[str, Any]:
    """Median and quartiles of a call, µs."""
    if device.type == "cuda":
        wall_us, timer = on_gpu(calls)
    else:
        wall_us, timer = by_clock(calls), "monotonic_clock"
    low, middle, high = (float(value) for value in np.percentile(wall_us, [25, 50, 75]))
    return {"us_p25": low, "us": middle, "us_p75": high, "timer": timer}


def on_gpu(calls: Sequence[Call]) -> tuple[list[float], str]:
    """Time `calls` in a CUDA graph, between events where they wait for the device."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
        stream.synchronize()
        if not waits_for_device(calls[0]):
            times = graph_times(
                calls,
                target_ms=TARGET_MS,
                min_repetitions=LEAST_CALLS,
                max_repetitions=MOST_CALLS,
            )
            return times["wall_us"], "cuda_graph"
        began = time.perf_counter()
        calls[0]()
        stream.synchronize()
        count = math.ceil(TARGET_MS / 1e3 / max(time.perf_counter() - began, 1e-6))
        times = event_times(calls, min(max(count, LEAST_CALLS), MOST_CALLS))
        return times["wall_us"], "cuda_event"


def by_clock(calls: Sequence[Call]) -> list[float]:
    """Time calls one by one."""
    for call in calls:
        call()
    wall_us = []
    for index in range(CPU_CALLS):
        call = calls[index % len(calls)]
        began = time.perf_counter_ns()
        call()
        wall_us.append((time.perf_counter_ns() - began) / 1e3)
    return wall_us


if __name__ == "__main__":
    sys.exit(main())
