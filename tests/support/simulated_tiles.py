"""A *simulated* GPU that runs a grouped GEMM under 1,920 tile configs. Nothing here is measured.

The space is the one vLLM's tuning tries: five BLOCK_M, four BLOCK_N, three BLOCK_K, four GROUP_M,
two num_warps, four num_stages. The latency of a config is made of textbook parts that work against
each other, so that no parameter can be chosen without the others:

- tile quantisation: an expert's rows are rounded up to BLOCK_M, columns to BLOCK_N, K to BLOCK_K;
- wave quantisation: tiles run in waves of (multiprocessors x resident blocks), the last one partly;
- occupancy: resident blocks are limited by shared memory (stages), registers and threads;
- a config beyond the shared memory of a block *fails* (returns None), as a launch would;
- spills: accumulators beyond 255 registers a thread go to memory in every step;
- tensor cores: small warp tiles and BLOCK_M below 64 use them badly;
- latency hiding: bytes in flight (stages x resident blocks) bound the memory rate (Little's law);
- L2: what a wave of tiles shares depends on GROUP_M and on how many row tiles an expert has;
- launch, pipeline fill, epilogue;
- a rugged term that no model can know: each config has its own luck, one part for all token
  counts, one for each;
- measuring noise, with an outlier now and then.

All constants are of the size of an H100's and were written down once, before any search ran on it.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from dataclasses import dataclass

CHOICES: dict[str, tuple[int, ...]] = {
    "BLOCK_M": (16, 32, 64, 128, 256),
    "BLOCK_N": (32, 64, 128, 256),
    "BLOCK_K": (64, 128, 256),
    "GROUP_M": (1, 16, 32, 64),
    "num_warps": (4, 8),
    "num_stages": (2, 3, 4, 5),
}
CONFIGS: list[dict[str, int]] = [
    dict(zip(CHOICES, values, strict=True)) for values in itertools.product(*CHOICES.values())
]


@dataclass(frozen=True)
class SimulatedGpu:
    """Constants of the device; rates are per second, times in µs."""

    units: int = 132
    flops: float = 8.0e14
    dram_bytes: float = 3.0e12
    l2_bytes_per_s: float = 6.0e12
    l2_bytes: float = 50e6
    shared_bytes: int = 232_448
    registers: int = 65_536
    memory_latency_us: float = 0.8
    launch_us: float = 4.0
    rugged_std: float = 0.012  # of a config at all token counts
    rugged_tokens_std: float = 0.008  # of a config at one
    noise_std: float = 0.01
    outliers: float = 0.02  # share of measurements that are 5 to 30 % too slow


@dataclass(frozen=True)
class Layer:
    """A gate-up grouped GEMM: `experts` of [2 d_ff, d_model] in bfloat16, `top_k` of them a token.

    `skew` is the Zipf exponent of how often each expert is chosen; 0 is balanced.
    """

    name: str
    experts: int
    top_k: int
    d_model: int
    d_ff: int
    skew: float = 0.0

    def counts(self, tokens: int) -> list[int]:
        """Rows of each expert at `tokens` tokens."""
        weights = [(rank + 1) ** -self.skew for rank in range(self.experts)]
        share = tokens * self.top_k / sum(weights)
        counts = [min(tokens, math.floor(weight * share)) for weight in weights]
        for index in itertools.cycle(range(self.experts)):
            if sum(counts) >= tokens * self.top_k:
                return counts
            if counts[index] < tokens:
                counts[index] += 1
        raise AssertionError("unreachable")


DEVELOPMENT = (
    (Layer("qwen3-30b", 128, 8, 2048, 768), (16, 512, 4096)),
    (Layer("mixtral", 8, 2, 4096, 14336), (16, 512, 4096)),
    # Held out until the figures of a first version were read on them, and known since.
    (Layer("olmoe-zipf", 64, 8, 2048, 1024, skew=0.8), (8, 128, 2048)),
    (Layer("gpt-oss-20b", 32, 4, 2880, 2880), (4, 64, 1024)),
    (Layer("deepseek-ep8", 32, 8, 7168, 2048, skew=0.4), (32, 256, 4096)),
)
HELD_OUT = (
    (Layer("qwen3-235b", 128, 8, 4096, 1536), (8, 256, 2048)),
    (Layer("phi-3.5-moe", 16, 2, 4096, 6400, skew=0.6), (16, 128, 1024)),
    (Layer("mixtral-8x22b-tp4", 8, 2, 6144, 4096), (4, 64, 2048)),
)


def simulated_latency_us(
    gpu: SimulatedGpu, layer: Layer, tokens: int, config: dict[str, int]
) -> float | None:
    """Noise-free simulated latency in µs, or None where the config cannot be launched."""
    bm, bn, bk = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]
    warps, stages = config["num_warps"], config["num_stages"]
    columns, depth = 2 * layer.d_ff, layer.d_model
    stage_bytes = (bm + bn) * bk * 2
    shared = stages * stage_bytes + 1024
    if shared > gpu.shared_bytes:
        return None
    threads = 32 * warps
    needed = bm * bn / threads + 0.35 * (bm + bn) * 16 / threads + 42 + 4 * (stages - 2)
    registers = min(255, max(40, needed))
    spilled = max(0.0, needed - 255)
    resident = max(
        1,
        min(gpu.shared_bytes // shared, int(gpu.registers // (registers * threads)), 64 // warps),
    )

    rows = [math.ceil(count / bm) for count in layer.counts(tokens) if count]
    row_tiles, column_tiles = sum(rows), math.ceil(columns / bn)
    tiles = row_tiles * column_tiles
    steps = math.ceil(depth / bk)

    # One step of one tile: arithmetic against what the multiprocessor can bring in.
    warp_tile = bm * bn / warps
    tensor = (0.86 if bm >= 64 else 0.62) * warp_tile / (warp_tile + 190) * bk / (bk + 12)
    if bm >= 64 and warps == 8 and bm * bn < 8192:
        tensor *= 0.85  # two warp groups share too little work
    if bm == 16 and warps == 8:
        tensor *= 0.8
    compute_us = 2.0 * bm * bn * bk / (gpu.flops / gpu.units * tensor) * 1e6
    compute_us *= 1 + 0.012 * spilled
    slots = gpu.units * resident
    waves = tiles / slots
    full, last = math.floor(waves), waves - math.floor(waves)
    traffic = _traffic_per_tile(config, rows, column_tiles, min(tiles, slots), steps)
    total_us = gpu.launch_us
    for share, times in ((1.0, full), (last, 1 if last > 0 else 0)):
        if not times:
            continue
        active = share * slots
        blocks = max(1.0, active / gpu.units)  # on the busiest multiprocessor
        in_flight = blocks * (stages - 1) * stage_bytes * min(active, gpu.units) / gpu.units
        latency_rate = in_flight * gpu.units / gpu.memory_latency_us * 1e6
        dram_us = active * traffic[0] / min(gpu.dram_bytes, latency_rate) * 1e6
        l2_us = active * traffic[1] / min(gpu.l2_bytes_per_s, 2.2 * latency_rate) * 1e6
        # Resident blocks overlap their arithmetic and their waiting; one alone does not.
        arithmetic_us = steps * compute_us * math.ceil(blocks)
        wait_us = steps * 0.06 / stages / math.sqrt(blocks)
        fill_us = gpu.memory_latency_us * (1 + 0.15 * (stages - 1)) + 0.4 + bm * bn * 1.5e-5
        bound = (arithmetic_us**4 + dram_us**4 + l2_us**4) ** 0.25
        total_us += times * (bound + wait_us + fill_us)
    return total_us * math.exp(
        gpu.rugged_std * _luck(layer, None, config)
        + gpu.rugged_tokens_std * _luck(layer, tokens, config)
    )


def simulated_measurement_us(
    gpu: SimulatedGpu, true_us: float, draw: random.Random
) -> tuple[float, float]:
    """One noisy simulated measurement of a config: its median in µs and its relative error std."""
    factor = math.exp(draw.gauss(0.0, gpu.noise_std))
    if draw.random() < gpu.outliers:
        factor *= 1 + draw.uniform(0.05, 0.3)
    return true_us * factor, gpu.noise_std


def _traffic_per_tile(
    config: dict[str, int], rows: list[int], column_tiles: int, wave: int, steps: int
) -> tuple[float, float]:
    """Bytes a tile of a full wave brings from DRAM, and through L2."""
    bm, bn, bk = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]
    a_tile, b_tile = bm * bk * steps * 2.0, bn * bk * steps * 2.0
    group = min(config["GROUP_M"], sum(rows))
    wide = max(1.0, min(column_tiles, wave / group))
    tall = min(float(group) * math.ceil(wave / (group * wide)), float(sum(rows)))
    per_expert = sum(rows) / len(rows)
    experts = max(1.0, tall / per_expert)  # whose weights a wave touches: they share nothing
    unique = tall * a_tile + experts * wide * b_tile
    # A wave that outgrows the cache, or that comes back to a row later, reads again.
    again = 1 + 0.25 * min(1.0, unique / 40e6)
    unique = min(unique * again, wave * (a_tile + b_tile))
    return unique / wave, a_tile + b_tile


def _luck(layer: Layer, tokens: int | None, config: dict[str, int]) -> float:
    """A normal number that belongs to this config, always the same."""
    text = f"{layer.name} {tokens} {sorted(config.items())}"
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
    return random.Random(seed).gauss(0.0, 1.0)
