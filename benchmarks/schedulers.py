"""Persistent against plain launches of the grouped expert kernels: which pays when.

    python benchmarks/schedulers.py --out schedulers.json
    python benchmarks/schedulers.py --rehearse     # tiny shapes, interpreted: no figure means much

Three questions, each over models and token counts:

- *Imbalance.* The same assignments spread evenly, by Zipf's law, or over few experts: a plain
  launch has a program a tile and leaves their placement to the hardware; a persistent one deals
  them out beforehand and spares the starts.
- *Reconfiguration.* Token counts that change every call, every eighth, or never. Counts stay on the
  device, so both kinds of launch follow them without the host; what changes is which weights lie in
  the cache.
- *Another tile.* A new tile configuration needs another captured graph. Its capture is timed, and
  set against what the better launch saves a call: that many calls pay for it.

Every figure is the median over rounds in which the launches take turns, forwards then backwards,
with the quartiles of the ratio to the plain launch of the same round.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from costprof.core.device import detect_device, software_versions
from costprof.core.files import write_json
from costprof.profiler.counts import layer_counts

LAUNCHES = {"plain": 0, "persistent": 1, "persistent, 2 a multiprocessor": 2}
DISTRIBUTIONS = ("balanced", "zipf-1.0", "zipf-1.2", "few")
EVERY = (1, 8, 0)  # calls between changes of the counts; 0: never
CALLS = 32  # in a row
ROUNDS = 8


@dataclasses.dataclass(frozen=True)
class Shape:
    """One MoE layer."""

    name: str
    d_model: int
    d_ff: int
    experts: int
    top_k: int
    tokens: tuple[int, ...]


SHAPES = (
    Shape("Qwen3-30B-A3B", 2048, 768, 128, 8, (16, 128, 2048)),
    Shape("Mixtral-8x7B", 4096, 14336, 8, 2, (16, 2048)),
)
REHEARSAL = (Shape("tiny", 64, 64, 4, 2, (4,)),)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    if options.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"
    elif not torch.cuda.is_available():
        print("no CUDA device is visible; try --rehearse", file=sys.stderr)
        return 3
    found = [
        case
        for shape in (REHEARSAL if options.rehearse else SHAPES)
        for tokens in shape.tokens
        for case in compare(shape, tokens, rehearse=options.rehearse)
    ]
    if options.out:
        device = detect_device("cpu" if options.rehearse else "gpu")
        write_json(
            options.out,
            {
                "device": device.to_dict(),
                "software": software_versions(),
                "rehearsal": options.rehearse,
                "cases": found,
            },
        )
    return 0


def compare(shape: Shape, tokens: int, *, rehearse: bool) -> list[dict[str, Any]]:
    """Measure every launch for one shape and token count, and print a line each."""
    from costprof.runtime.kernels.launch import compute_capability
    from costprof.runtime.kernels.tiles import choose_tile

    device = torch.device("cpu" if rehearse else "cuda")
    torch.manual_seed(0)
    rows = tokens * shape.top_k
    x = torch.randn(rows, shape.d_model, device=device).to(dtype_of(device))
    weights = weight_copies(shape, device)
    tile = choose_tile(
        {}, rows / shape.experts, compute_capability(device), dtype_of(device)
    ).to_dict()
    cases = []
    for distribution, every in itertools.product(DISTRIBUTIONS, EVERY):
        spread = f"active-{shape.top_k}" if distribution == "few" else distribution
        counts = layer_counts(shape.experts, shape.top_k, tokens, spread)
        runs, capture_s = {}, {}
        for name, persistent in LAUNCHES.items():
            config = {**tile, "persistent": persistent}
            runs[name], capture_s[name] = captured(
                x, weights, vectors(counts, device), every, config
            )
        us = take_turns(runs, rounds=2 if rehearse else ROUNDS, on_gpu=not rehearse)
        cases += report(shape, tokens, distribution, every, us, capture_s)
        if rehearse:
            break
    return cases


def dtype_of(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def weight_copies(shape: Shape, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """As many copies as make the weights that a call reads cold, and at least two.

    As in a sweep, what is read between two calls on one copy holds two last-level caches, where the
    fewest experts are active, and all copies together at most a quarter of the memory.
    """
    dtype = dtype_of(device)
    first = torch.randn(shape.experts, 2 * shape.d_ff, shape.d_model, device=device)
    second = torch.randn(shape.experts, shape.d_model, shape.d_ff, device=device)
    pair = (
        (first * shape.d_model**-0.5).to(dtype),
        (second * shape.d_ff**-0.5).to(dtype),
    )
    del first, second
    copies = 2
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        size_bytes = sum(each.nbytes for each in pair)
        copies = copies_wanted(shape, size_bytes, properties.L2_cache_size, properties.total_memory)
    return [pair, *((pair[0].clone(), pair[1].clone()) for _ in range(copies - 1))]


def copies_wanted(shape: Shape, size_bytes: int, cache_bytes: int, memory_bytes: int) -> int:
    """How many copies `weight_copies` makes of weights of `size_bytes`, top_k experts being active.

    >>> copies_wanted(Shape("one", 64, 64, 128, 8, (4,)), 2**30, 50 * 2**20, 80 * 2**30)
    3
    """
    read_bytes = size_bytes * shape.top_k / shape.experts
    wanted = 1 + math.ceil(2 * cache_bytes / read_bytes)
    return max(2, min(wanted, memory_bytes // 4 // size_bytes))


def vectors(counts: tuple[int, ...], device: torch.device) -> list[Tensor]:
    """The same counts dealt to the experts in different orders."""
    rng = random.Random(0)
    return [
        torch.tensor(rng.sample(counts, len(counts)), dtype=torch.int32, device=device)
        for _ in range(CALLS)
    ]


def captured(
    x: Tensor,
    weights: list[tuple[Tensor, Tensor]],
    changing: list[Tensor],
    every: int,
    config: dict[str, int],
) -> tuple[Callable[[], object], float]:
    """Return what runs CALLS layers in a row, and the seconds its capture took.

    A CUDA graph, its kernels compiled before; plain calls, captured in no time, without a GPU.
    """
    from costprof.runtime.kernels.triton_experts import grouped_swiglu

    counts = changing[0].clone()

    def calls(number: int) -> None:
        for index in range(number):
            if every and index % every == 0:
                counts.copy_(changing[index])
            grouped_swiglu(x, counts, *weights[index % len(weights)], **config)

    if x.device.type != "cuda":
        return lambda: calls(CALLS), 0.0
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        calls(len(weights))
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    began = time.perf_counter()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        calls(CALLS)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - began

    def replay(_read_by_the_graph: object = (x, weights, changing, counts)) -> None:
        graph.replay()

    return replay, seconds


def take_turns(
    runs: dict[str, Callable[[], object]], rounds: int, *, on_gpu: bool
) -> dict[str, list[float]]:
    """Microseconds a call of each launch, one value a round: forwards and backwards averaged."""
    us: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        total = dict.fromkeys(runs, 0.0)
        for name in [*runs, *reversed(runs)]:
            total[name] += seconds(runs[name], on_gpu)
        for name, value in total.items():
            us[name].append(value / 2 / CALLS * 1e6)
    return us


def seconds(run: Callable[[], object], on_gpu: bool) -> float:
    if not on_gpu:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def report(
    shape: Shape,
    tokens: int,
    distribution: str,
    every: int,
    us: dict[str, list[float]],
    capture_s: dict[str, float],
) -> list[dict[str, Any]]:
    changes = f"counts change every {every} calls" if every else "counts never change"
    print(f"{shape.name}, {tokens} tokens, {distribution}, {changes}")
    plain = us["plain"]
    cases = []
    for name, values in us.items():
        ratios = sorted(a / b for a, b in zip(values, plain, strict=True))
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        saved_us = statistics.median(plain) - statistics.median(values)
        pays_after = capture_s[name] * 1e6 / saved_us if saved_us > 0 else None
        cases.append(
            {
                "model": shape.name,
                "tokens": tokens,
                "distribution": distribution,
                "counts_change_every": every,
                "launch": name,
                "us": statistics.median(values),
                "ratio_to_plain": {"p25": low, "median": middle, "p75": high},
                "capture_s": capture_s[name],
                "calls_that_pay_a_new_capture": pays_after,
            }
        )
        pays = f", a new capture pays after {pays_after:,.0f} calls" if pays_after else ""
        print(
            f"  {name:<32} {statistics.median(values):9.1f} us   x{middle:.3f} "
            f"({low:.3f}-{high:.3f}), captured in {capture_s[name]:.2f} s{pays}"
        )
    return cases


if __name__ == "__main__":
    sys.exit(main())
