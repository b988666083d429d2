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

from costprof.core.errors import ToolError
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
    """Fingerprint GPU `index` as torch counts them, or the CPU.

    Args:
        kind: "gpu", "cpu", or None for the GPU if there is one.
        index: Which of the visible GPUs.

    Raises:
        ToolError: `kind` is "gpu" and NVML does not show one.
    """
    if kind != "cpu":
        found = _nvidia_gpu(index)
        if found is not None:
            return found
    if kind == "gpu":
        raise ToolError(
            "NVML shows no NVIDIA GPU",
            "the device cannot be named, so nothing measured on it could be trusted",
            "install the driver's NVML library, or measure the CPU",
        )
    return _cpu()


def gpu_uuid(index: int = 0) -> str:
    """Return NVML's name, "GPU-…", of GPU `index` as torch counts them.

    Raises:
        ToolError: NVML is not here or does not show that GPU.
    """
    try:
        import pynvml
    except ImportError as error:
        raise _no_uuid(index, error) from error
    try:
        pynvml.nvmlInit()
        try:
            return _text(pynvml.nvmlDeviceGetUUID(_nvml_handle(pynvml, index)))
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise _no_uuid(index, error) from error


def _no_uuid(index: int, error: Exception) -> ToolError:
    return ToolError(
        f"NVML does not show GPU {index} ({error})",
        "its power cannot be read",
        "see costprof doctor",
    )


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
        handle = _nvml_handle(pynvml, index)
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


def _nvml_handle(pynvml: Any, index: int) -> Any:
    """NVML's handle of torch's GPU `index`: the two count differently, and torch may see fewer."""
    try:
        import torch

        if torch.cuda.is_available():
            uuid = str(torch.cuda.get_device_properties(index).uuid)
            return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")
    except (ImportError, AttributeError, pynvml.NVMLError):
        pass
    return pynvml.nvmlDeviceGetHandleByIndex(index)


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


def _cpu_cache_bytes(root: Path = Path("/sys/devices/system/cpu")) -> int:
    """Size of all last-level caches that the cores of this process share."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}
    caches: dict[tuple[int, str], int] = {}
    for core in cores:
        for folder in (root / f"cpu{core}" / "cache").glob("index*"):
            try:
                level = int((folder / "level").read_text(encoding="ascii"))
                sharers = (folder / "shared_cpu_list").read_text(encoding="ascii").strip()
                size = (folder / "size").read_text(encoding="ascii").strip()
            except (OSError, ValueError):
                continue
            match = re.fullmatch(r"(\d+)([KMG]?)", size)
            if match:
                unit = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[match[2]]
                caches[level, sharers] = int(match[1]) * unit
    last = max((level for level, _ in caches), default=0)
    return sum(size for (level, _), size in caches.items() if level == last)
