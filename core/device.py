"""The device a measurement was made on, and the software it ran under.

Standard library only at import; `detect_device` asks NVML and torch when they are there.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from costprof.core.hashing import content_id

DeviceKind = Literal["gpu", "cpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFingerprint:
    """What decides the speed of a device. `name` alone is its *model*: tables refuse another.

    `memory_bytes` is device memory (RAM on a CPU), `cache_bytes` the last-level cache, `units`
    streaming multiprocessors or CPU cores in use. Fields that could not be read are 0 or empty.
    """

    kind: DeviceKind
    name: str
    units: int = 0
    memory_bytes: int = 0
    cache_bytes: int = 0
    compute_capability: str = ""
    driver: str = ""
    power_limit_w: float = 0.0

    @property
    def device_id(self) -> str:
        """Hash of all fields: the same model under another driver or limit is another id."""
        return content_id(self.to_dict(), length=12)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return dataclasses.asdict(self)


def detect_device(kind: DeviceKind | None = None, index: int = 0) -> DeviceFingerprint:
    """Fingerprint GPU `index`, or the CPU where there is no GPU or `kind` is "cpu"."""
    if kind != "cpu":
        found = _nvidia_gpu(index)
        if found is not None:
            return found
    return _cpu()


def software_versions() -> dict[str, str]:
    """Versions of Python, costprof and the libraries whose version changes what is measured."""
    versions = {"python": platform.python_version(), "system": platform.system()}
    for package in ("costprof", "torch", "triton", "nvtx"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = ""
    return versions


def _nvidia_gpu(index: int) -> DeviceFingerprint | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        units, cache_bytes = _torch_gpu_sizes(index)
        return DeviceFingerprint(
            kind="gpu",
            name=_text(pynvml.nvmlDeviceGetName(handle)),
            units=units,
            memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
            cache_bytes=cache_bytes,
            compute_capability=f"{major}.{minor}",
            driver=_text(pynvml.nvmlSystemGetDriverVersion()),
            power_limit_w=_power_limit_w(pynvml, handle),
        )
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _power_limit_w(pynvml: Any, handle: Any) -> float:
    try:
        return float(pynvml.nvmlDeviceGetEnforcedPowerLimit(handle)) / 1000.0
    except pynvml.NVMLError:
        return 0.0


def _torch_gpu_sizes(index: int) -> tuple[int, int]:
    try:
        import torch
    except ImportError:
        return 0, 0
    if not torch.cuda.is_available():
        return 0, 0
    properties = torch.cuda.get_device_properties(index)
    return int(properties.multi_processor_count), int(properties.L2_cache_size)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _cpu() -> DeviceFingerprint:
    return DeviceFingerprint(
        kind="cpu",
        name=_cpu_name(),
        units=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        memory_bytes=_ram_bytes(),
        cache_bytes=_cpu_cache_bytes(),
    )


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1).strip() if match else platform.machine()


def _ram_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0


def _cpu_cache_bytes() -> int:
    """Size of the largest cache the first core sees."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            text = path.read_text(encoding="ascii").strip()
        except OSError:
            continue
        match = re.fullmatch(r"(\d+)([KMG]?)", text)
        if match:
            sizes.append(int(match[1]) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[match[2]])
    return max(sizes)
