"""The two ceilings of a machine: a large copy and a large bf16 matrix product.

python benchmarks/ceilings.py --out ceilings.json
python benchmarks/ceilings.py --out ceilings.json --device cpu    # tiny: a rehearsal
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from costprof.core.device import detect_device, software_versions
from costprof.core.files import write_json

REPEATS = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device is visible; try --device cpu", file=sys.stderr)
        return 3
    found = ceilings(options.device)
    write_json(options.out, found)
    print(json.dumps(found, indent=1))
    return 0


def ceilings(device_name: str) -> dict[str, Any]:
    """Measure both, medians with their spread."""
    on_gpu = device_name == "cuda"
    count, side = (2**31, 8192) if on_gpu else (2**24, 512)
    source = torch.randn(count // 4, device=device_name)
    target = torch.empty_like(source)
    copy_s = timed(lambda: target.copy_(source), on_gpu)
    left = torch.randn(side, side, device=device_name, dtype=torch.bfloat16)
    right = torch.randn(side, side, device=device_name, dtype=torch.bfloat16)
    product_s = timed(lambda: left @ right, on_gpu)
    return {
        "device": detect_device("gpu" if on_gpu else "cpu").to_dict(),
        "software": software_versions(),
        "copy_bytes_per_s": spread([2 * source.nbytes / s for s in copy_s]),
        "copy_counts": "bytes read plus bytes written",
        "bf16_matmul_flops": spread([2 * side**3 / s for s in product_s]),
        "bf16_matmul_side": side,
    }


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
