"""C beside this file, compiled once for this machine by the compiler it has.

The library lies in the user's cache under the hash of its source and command, as Triton keeps its
kernels. Where there is no compiler, or it fails, callers go on with tensors.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.resources
import logging
import os
import platform
import shutil
import subprocess
from pathlib import Path

from costprof.core.files import replacing

# No product and sum in one rounding: results are those of the tensor code.
_FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fPIC", "-shared")
_TIMEOUT_S = 60
_log = logging.getLogger(__name__)


@functools.cache
def library(source_name: str) -> ctypes.CDLL | None:
    """Return the compiled library of `source_name`, None where it cannot be had.

    `COSTPROF_COMPILE=0` in the environment says not to try; `COSTPROF_CACHE` names the folder.
    """
    if os.environ.get("COSTPROF_COMPILE") == "0":
        return None
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return None
    try:
        return ctypes.CDLL(str(_built(source_name, compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        _log.info("%s was not compiled (%s): routing goes on with tensors", source_name, error)
        return None


def _built(source_name: str, compiler: str) -> Path:
    source = importlib.resources.files(__package__).joinpath(source_name).read_bytes()
    identity = " ".join((compiler, *_FLAGS, platform.libc_ver()[1], _processor()))
    name = hashlib.sha256(source + identity.encode()).hexdigest()[:16]
    path = _cache() / f"{Path(source_name).stem}-{name}.so"
    if not path.exists():
        with replacing(path) as temporary:
            subprocess.run(
                [compiler, *_FLAGS, "-x", "c", "-", "-o", str(temporary), "-lm"],
                input=source,
                check=True,
                capture_output=True,
                timeout=_TIMEOUT_S,
            )
    return path


def _processor() -> str:
    """What the processor can do: a folder may be shared by machines that differ in it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.machine()
    found = [line for line in text.splitlines() if line.lower().startswith(("flags", "features"))]
    return f"{platform.machine()} {next(iter(found), '')}"


def _cache() -> Path:
    stated = os.environ.get("COSTPROF_CACHE") or os.environ.get("XDG_CACHE_HOME")
    return (Path(stated) if stated else Path.home() / ".cache") / "costprof"
