"""The nsys backend: profile, export, check, ingest. Timings come from the export alone."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from costprof.core.errors import CostprofError
from costprof.profiler.backends.process import note_crash, script_command
from costprof.profiler.importing import importing_environment
from costprof.profiler.ingest import ingest_export
from costprof.profiler.nsys.export import export_report
from costprof.profiler.nsys.roundtrip import prove_round_trip
from costprof.profiler.nsys.tool import (
    NsysTool,
    check_profile,
    profile_command,
    scratch_environment,
)
from costprof.profiler.process import run_tool
from costprof.profiler.results import Calls, RunOutcome, notes_path, read_results
from costprof.profiler.scenario import DeviceName
from costprof.profiler.scripts import Mode
from costprof.profiler.times import scenario_times


@dataclass(frozen=True, slots=True)
class NsysBackend:
    """Times NVTX ranges on a CPU and the kernels launched in them on a GPU.

    `max_repetitions` is that of the sweep's timing: repetitions are numbered through its passes.
    """

    tool: NsysTool
    device: DeviceName
    max_repetitions: int

    @property
    def name(self) -> str:
        """`nsys`."""
        return "nsys"

    @property
    def mode(self) -> Mode:
        """Scripts emit NVTX ranges."""
        return "nvtx"

    @property
    def tool_version(self) -> str:
        """Version of nsys."""
        return f"nsys {self.tool.version_text}"

    def prove(self) -> None:
        """Emit one range and find it in the export: see `prove_round_trip`."""
        prove_round_trip(self.tool)

    def measure(
        self, script: Path, *, source: str, folder: Path, timeout_s: float, mark: str
    ) -> RunOutcome:
        """Profile `script` and ingest the export as the part `source`; see `Backend.measure`."""
        notes = notes_path(folder, source)
        notes.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="costprof-") as scratch:
            report = Path(scratch) / "run.nsys-rep"
            traced = ("cuda", "nvtx") if self.device == "cuda" else ("nvtx",)
            command = script_command(script, notes)
            with scratch_environment() as environment:
                completed = run_tool(
                    profile_command(self.tool, report.with_suffix(""), traced, command),
                    timeout_s=timeout_s,
                    env=importing_environment(environment),
                    logs=notes.with_suffix(""),
                    mark=mark,
                )
            outcome, _ = read_results(notes)
            note_crash(outcome, completed, timeout_s)
            try:
                check_profile(completed, report, timeout_s=timeout_s)
                export = Path(scratch) / "run.sqlite"
                export_report(report, export, self.tool)
                ingest_export(export, folder, part=source, source=source)
                outcome.calls = self._calls(folder, source)
            except CostprofError as error:
                outcome.unread = str(error)
        return outcome

    def _calls(self, folder: Path, part: str) -> dict[str, Calls]:
        table = scenario_times(folder, [part])
        names = np.asarray(table["scenario_id"].to_pylist())
        columns = {
            name: table[name].to_numpy(zero_copy_only=False).astype(np.float64)
            for name in ("duration_ns", "kernels", "kernel_sum_ns", "kernel_span_ns")
        }
        passes = table["repetition"].to_numpy() // self.max_repetitions
        on_gpu = self.device == "cuda"
        wall_ns = columns["kernel_span_ns" if on_gpu else "duration_ns"]
        unseen = np.full(wall_ns.size, np.nan)
        return {
            str(name): Calls(
                wall_us=wall_ns[names == name] / 1e3,
                kernel_sum_us=(columns["kernel_sum_ns"] / 1e3 if on_gpu else unseen)[names == name],
                kernels=(columns["kernels"] if on_gpu else unseen)[names == name],
                pass_index=passes[names == name],
            )
            for name in np.unique(names)
        }
