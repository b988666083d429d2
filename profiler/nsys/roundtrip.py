"""Prove that an NVTX range emitted by Python arrives in an nsys export.

Python's nvtx from 0.2.12 on and nsys 2022.4 and 2023.4 do not understand each other: the domain
arrives and every range is lost, without a word. So one range goes round before anything relies on
it.
"""

from __future__ import annotations

import importlib.metadata
import sys
import tempfile
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from costprof.core.errors import CostprofError, ExportError, ToolError
from costprof.profiler.ingest import ingest_export
from costprof.profiler.nsys.export import export_report
from costprof.profiler.nsys.tool import (
    NsysTool,
    check_profile,
    profile_command,
    scratch_environment,
)
from costprof.profiler.process import run_tool

_TIMEOUT_S = 60.0
_TEXT = "round-trip"
_EMIT = f"""
import nvtx
with nvtx.annotate({_TEXT!r}, domain="costprof"):
    pass
"""


def prove_round_trip(tool: NsysTool) -> None:
    """Emit one range in domain `costprof` under `tool` and find it in the export; takes seconds.

    Raises:
        ToolError: nsys fails, or the range does not arrive; then both versions and the fix are
            named.
    """
    with tempfile.TemporaryDirectory(prefix="costprof-") as scratch:
        folder = Path(scratch)
        report = folder / "probe.nsys-rep"
        with scratch_environment() as environment:
            completed = run_tool(
                profile_command(
                    tool, report.with_suffix(""), ("nvtx",), [sys.executable, "-c", _EMIT]
                ),
                timeout_s=_TIMEOUT_S,
                env=environment,
            )
        check_profile(completed, report, timeout_s=_TIMEOUT_S)
        export = folder / "probe.sqlite"
        try:
            export_report(report, export, tool)
            ingest_export(export, folder, part="probe", source="probe")
            ranges = pq.read_table(folder / "ranges" / "probe.parquet", columns=["domain", "text"])
        except ExportError as error:
            raise _lost(tool) from error
        arrived = pc.and_(pc.equal(ranges["domain"], "costprof"), pc.equal(ranges["text"], _TEXT))
        if not pc.any(arrived).as_py():
            raise _lost(tool)


def _lost(tool: NsysTool) -> CostprofError:
    try:
        version = importlib.metadata.version("nvtx")
    except importlib.metadata.PackageNotFoundError:
        version = "(which is not installed)"
    return ToolError(
        f"nsys {tool.version_text} records no range of Python's nvtx {version}",
        "nothing can be timed by NVTX ranges",
        "pip install 'nvtx<0.2.12', or install a newer nsys",
    )
