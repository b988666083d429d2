"""What a verb is about to hold, against the memory that is free."""

from __future__ import annotations

from pathlib import Path

import torch

from costprof.core.errors import InputError

_SHARE = 0.8


def check_memory(what: str, needed: int, device: torch.device, *, way_out: str) -> None:
    """Check that `needed` bytes, of `what`, are free on `device`.

    Raises:
        InputError: they are more than four fifths of what is.
    """
    available = _available_bytes(device)
    if available and needed > _SHARE * available:
        raise InputError(
            f"{what} take {needed / 2**30:.1f} GiB, {available / 2**30:.1f} GiB of memory are free",
            "nothing was run",
            way_out,
        )


def _available_bytes(device: torch.device) -> int:
    """Free memory, 0 where it cannot be read."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return 0
    for line in text.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
