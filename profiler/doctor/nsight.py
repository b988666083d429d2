"""nsys, and whether a range emitted by Python really arrives in its export."""

from __future__ import annotations

import importlib.metadata

from costprof.core.errors import CostprofError
from costprof.profiler.doctor.check import Check, from_error
from costprof.profiler.nsys.roundtrip import prove_round_trip
from costprof.profiler.nsys.tool import find_nsys

NSYS, ROUND_TRIP = "nsys", "NVTX round trip"
_NO_RANGES = "sweep cannot time by NVTX ranges; it falls back to another backend"


def nsys_checks() -> list[Check]:
    """Find nsys and send one NVTX range through it to an export and back (seconds)."""
    tool = find_nsys()
    if tool is None:
        return [
            Check(
                NSYS,
                "missing",
                "not on PATH nor in NVIDIA's folders",
                "--backend nsys is refused, and .nsys-rep files cannot be ingested",
                "install NVIDIA Nsight Systems (on Debian 12: our script .ci/install-nsight)",
            ),
            Check(ROUND_TRIP, "missing", "no nsys", _NO_RANGES, f"see '{NSYS}'"),
        ]
    found = Check(NSYS, "ok", f"{tool.version_text} at {tool.path}")
    try:
        version = importlib.metadata.version("nvtx")
    except importlib.metadata.PackageNotFoundError:
        return [
            found,
            Check(
                ROUND_TRIP,
                "missing",
                "the Python package nvtx is not installed",
                _NO_RANGES,
                "pip install 'nvtx<0.2.12'",
            ),
        ]
    try:
        prove_round_trip(tool)
    except CostprofError as error:
        return [found, from_error(ROUND_TRIP, error)]
    except OSError as error:
        said = f"it cannot be made ({error.strerror or error})"
        way_out = "check that TMPDIR can be written and has room"
        return [found, Check(ROUND_TRIP, "missing", said, _NO_RANGES, way_out)]
    return [
        found,
        Check(
            ROUND_TRIP,
            "ok",
            f"a range of Python's nvtx {version} came back from nsys {tool.version_text}",
        ),
    ]
