"""The host: Python, processor, memory, and the cache that cold weights must not fit into."""

from __future__ import annotations

import platform

from costprof.core.device import DeviceFingerprint, detect_device
from costprof.profiler.doctor.check import Check

PYTHON, CPU = "Python", "CPU"


def host_checks(cpu: DeviceFingerprint | None = None) -> list[Check]:
    """Describe Python and the processor `cpu`, by default this machine's."""
    cpu = cpu or detect_device("cpu")
    found = (
        f"{cpu.name}, {cpu.units or 'unknown'} cores in use, "
        f"last-level cache {_mebibytes(cpu.cache_bytes)}, memory {_mebibytes(cpu.memory_bytes)}"
    )
    python = Check(PYTHON, "ok", f"{platform.python_version()} on {platform.system()}")
    if cpu.cache_bytes and cpu.memory_bytes:
        return [python, Check(CPU, "ok", found)]
    return [
        python,
        Check(
            CPU,
            "degraded",
            found,
            "weights are rotated through an assumed cache size, so 'cold' may not be cold",
            "measure where /sys/devices/system/cpu can be read",
        ),
    ]


def _mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.0f} MiB" if size_bytes else "unknown"
