"""Hardware counters: ncu, and whether the driver lets this user read them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from costprof.core.errors import ToolError
from costprof.profiler.doctor.check import Check
from costprof.profiler.process import run_tool

NCU, PERMISSION = "ncu", "counter permission"
_NO_COUNTERS = "sweep --counters ncu adds none; timings do not need them"
_DRIVER_PARAMS = Path("/proc/driver/nvidia/params")
_OWN_STATUS = Path("/proc/self/status")
_CAP_SYS_ADMIN = 21
_TIMEOUT_S = 30.0


def ncu_check() -> Check:
    """Run `ncu --version`."""
    path = shutil.which("ncu")
    if path is None:
        return Check(NCU, "missing", "not on PATH", _NO_COUNTERS, "install NVIDIA Nsight Compute")
    try:
        completed = run_tool([path, "--version"], timeout_s=_TIMEOUT_S)
    except ToolError as error:
        return Check(NCU, "missing", error.fact, _NO_COUNTERS, "install it again")
    match = re.search(r"Version (\d+(?:\.\d+)+)", completed.stdout)
    if not completed.succeeded or match is None:
        words = completed.last_words or "nothing"
        return Check(
            NCU, "missing", f"{path} --version says: {words}", _NO_COUNTERS, "install it again"
        )
    return Check(NCU, "ok", f"{match[1]} at {path}")


def permission_check(driver_params: Path = _DRIVER_PARAMS, own_status: Path = _OWN_STATUS) -> Check:
    """Say if counters may be read: to all users, or to this one as CAP_SYS_ADMIN.

    Args:
        driver_params: What the loaded NVIDIA driver runs with.
        own_status: Status of this process, which holds its capabilities. Being root is not
            enough: in a container root often lacks the capability.
    """
    try:
        text = driver_params.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Check(
            PERMISSION,
            "missing",
            "no NVIDIA driver is loaded",
            "there are no counters to read",
            "load the NVIDIA driver; without a GPU there is none",
        )
    except OSError as error:
        return Check(
            PERMISSION,
            "degraded",
            f"{driver_params} cannot be read ({error.strerror})",
            "whether counters may be read shows only when ncu runs",
            "run as root to see it",
        )
    match = re.search(r"^RmProfilingAdminOnly:\s*(\d+)", text, re.MULTILINE)
    if match is not None and match[1] == "0":
        return Check(PERMISSION, "ok", "open to all users (RmProfilingAdminOnly 0)")
    said = "RmProfilingAdminOnly 1" if match else "RmProfilingAdminOnly is not stated"
    if _is_admin(own_status):
        return Check(PERMISSION, "ok", f"for administrators ({said}), and this process is one")
    return Check(
        PERMISSION,
        "degraded",
        f"for administrators only ({said}), and this process is none",
        "ncu will end with ERR_NVGPUCTRPERM; timings do not need counters",
        "run as root (container: --cap-add SYS_ADMIN), or load the driver with "
        "NVreg_RestrictProfilingToAdminUsers=0",
    )


def _is_admin(own_status: Path) -> bool:
    try:
        text = own_status.read_text(encoding="utf-8")
    except OSError:
        return False
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", text, re.MULTILINE)
    return match is not None and bool(int(match[1], 16) >> _CAP_SYS_ADMIN & 1)
