"""Power, temperature and clocks ten times a second: two minutes of load, two of rest.

    python benchmarks/heat.py --out heat.json

What the thermal model is fitted from. Nothing is set.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from costprof.core.device import detect_device, gpu_uuid, software_versions
from costprof.core.errors import CostprofError
from costprof.core.files import write_json
from costprof.profiler.energy.nvml import Reader, open_nvml, require_energy

HEAT_S, COOL_S, PERIOD_S = 120.0, 120.0, 0.1
SIDE = 8192


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device is visible", file=sys.stderr)
        return 3
    try:
        reader = open_nvml(gpu_uuid(0))
        try:
            require_energy(reader)
            samples = trace(reader)
        finally:
            reader.close()
    except CostprofError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if all(sample["temp_c"] is None for sample in samples):
        print("this GPU shows no temperature; a thermal model needs one", file=sys.stderr)
        return 3
    device = detect_device("gpu").to_dict()
    write_json(options.out, {"device": device, "software": software_versions(), "samples": samples})
    return 0


def trace(reader: Reader) -> list[dict[str, Any]]:
    """Load the GPU, let it rest, and return what was read in both."""
    left = torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16)
    right = torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16)
    samples: list[dict[str, Any]] = []
    began = time.monotonic()
    while (now := time.monotonic() - began) < HEAT_S + COOL_S:
        if now < HEAT_S:
            for _ in range(8):  # a tenth of a second and less
                left @ right
            torch.cuda.synchronize()
        else:
            time.sleep(PERIOD_S)
        if not samples or now - samples[-1]["time_s"] >= PERIOD_S:
            samples.append(
                {
                    "time_s": now,
                    "loaded": now < HEAT_S,
                    "counter_mj": reader.counter_mj(),
                    "power_w": reader.power_w(),
                    **reader.conditions()._asdict(),
                }
            )
    return samples


if __name__ == "__main__":
    sys.exit(main())
