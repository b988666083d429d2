"""Run one small triton kernel and print how: `python -m costprof.profiler.doctor.triton_probe`.

Interpreted on the CPU with TRITON_INTERPRET=1 in the environment, else compiled for the GPU.
"""

from __future__ import annotations

import json
import os
import sys

import torch
import triton
import triton.language as tl

_SIZE = 64


@triton.jit  # type: ignore[untyped-decorator]
def add(x, y, out, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Store `x + y`, `[SIZE]` each, in `out`."""
    index = tl.arange(0, SIZE)
    tl.store(out + index, tl.load(x + index) + tl.load(y + index))


def main() -> int:
    """Add two vectors, compare with torch, write `{"mode": ...}`; 1 if the sum is wrong."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    x = torch.arange(_SIZE, dtype=torch.float32, device="cpu" if interpreted else "cuda")
    out = torch.empty_like(x)
    add[(1,)](x, 2 * x, out, SIZE=_SIZE)
    if not torch.equal(out, 3 * x):
        sys.stderr.write("its sum is wrong\n")
        return 1
    sys.stdout.write(json.dumps({"mode": "interpreted" if interpreted else "compiled"}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
