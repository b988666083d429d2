"""What this machine can measure, and why not: one file per group of checks.

Every check tries the thing itself (reads the energy counter twice, sends an NVTX range through
nsys, reads a SQLite file) rather than looking for its files.
"""

from __future__ import annotations

from costprof.profiler.doctor.check import Check, Status
from costprof.profiler.doctor.report import Report, examine

__all__ = ["Check", "Report", "Status", "examine"]
