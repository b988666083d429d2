"""Count one call of a scenario under ncu: the metrics asked for, less those this ncu refuses."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from costprof.core.device import DeviceFingerprint
from costprof.core.errors import ToolError
from costprof.profiler.importing import importing_environment
from costprof.profiler.ncu import Counter, read_raw_page
from costprof.profiler.plan import Plan, Run
from costprof.profiler.process import Completed, run_tool
from costprof.profiler.scenario import Scenario
from costprof.profiler.scripts import write_scripts

METRICS = (
    "gpu__time_duration.sum",
    "sm__cycles_active.avg",
    "sm__cycles_elapsed.max",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "lts__t_sector_hit_rate.pct",
    # Occupancy: what was reached, what is possible, and what limits it.
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "sm__maximum_warps_per_active_cycle_pct",
    "launch__occupancy_limit_blocks",
    "launch__occupancy_limit_registers",
    "launch__occupancy_limit_shared_mem",
    "launch__occupancy_limit_warps",
    "launch__waves_per_multiprocessor",
    "launch__registers_per_thread",
    "launch__shared_mem_per_block",
    "launch__shared_mem_per_block_dynamic",
    "launch__shared_mem_per_block_static",
    "launch__grid_size",
    "launch__block_size",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
)

_TIMEOUT_S = 300.0
# One call is counted; those after it only take time.
_FEW_CALLS = {"min_repetitions": 3, "max_repetitions": 3, "target_ms": 1.0}
_REFUSED = "ERR_NVGPUCTRPERM"


class NotAllowed(ToolError):
    """No scenario can be counted here."""


@dataclass(slots=True)
class Ncu:
    """The ncu of this machine, and which metrics it turned out not to know."""

    program: str
    unknown: list[str] = field(default_factory=list)

    def count(
        self, scenario: Scenario, plan: Plan, device: DeviceFingerprint, mark: str
    ) -> list[Counter]:
        """Count one call of `scenario`; a metric that ncu does not know costs that one alone.

        Raises:
            NotAllowed: the driver refuses counters.
            ToolError, ExportError: ncu fails, sees no kernel, or its page cannot be read.
        """
        with tempfile.TemporaryDirectory(prefix="costprof-") as scratch:
            folder = Path(scratch)
            few = plan.timing.model_copy(update=_FEW_CALLS)
            write_scripts(Run((scenario,)), folder, "nvtx", few, device)
            while True:
                asked = [metric for metric in METRICS if metric not in self.unknown]
                page = folder / "raw.csv"
                completed = run_tool(
                    self._command(scenario, asked, page, folder),
                    timeout_s=_TIMEOUT_S,
                    env=importing_environment(),
                    mark=mark,
                )
                printed = page.read_text(encoding="utf-8", errors="replace")
                said = completed.stdout + completed.stderr + printed
                refused = unknown_metrics(said, asked)
                counted = completed.succeeded and '"Kernel Name"' in printed
                if not counted and 0 < len(refused) < len(asked):
                    self.unknown += refused
                    continue
                _require_counted(scenario, completed, said)
                return list(read_raw_page(page, name=f"ncu's raw page of {scenario.label()}"))

    def _command(
        self, scenario: Scenario, metrics: Sequence[str], page: Path, folder: Path
    ) -> list[str]:
        page.write_text("", encoding="utf-8")
        return [
            self.program,
            *("--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none"),
            # By itself ncu empties the caches before every replay of a kernel.
            *("--cache-control", "all" if scenario.cache_state == "cold" else "none"),
            *("--metrics", ",".join(metrics)),
            *("--nvtx", "--nvtx-include", f"costprof@{scenario.scenario_id}:0/"),
            *("--log-file", str(page)),
            *(sys.executable, str(folder / f"{scenario.scenario_id}.py")),
        ]


def find_ncu(plan: Plan) -> Ncu:
    """Return the ncu on PATH.

    Raises:
        ToolError: there is none, or `plan` did not measure a GPU.
    """
    if plan.device == "cpu":
        raise ToolError(
            "ncu counts on NVIDIA GPUs alone, and this sweep measured the CPU",
            "no counters were read; the timings are complete",
            "leave --counters out, or sweep on a GPU",
        )
    found = shutil.which("ncu")
    if found is None:
        raise ToolError(
            "ncu was not found on PATH",
            "no counters were read; the timings are complete",
            "install NVIDIA Nsight Compute, or leave --counters out",
        )
    return Ncu(found)


def unknown_metrics(said: str, asked: Sequence[str]) -> list[str]:
    """Return those of `asked` that ncu's messages name, with or without their suffix.

    ncu lists a metric in a message only to complain of it, on the line that says so or on the next,
    several after commas. Rows of the page begin with a quote; they are not messages.

    >>> unknown_metrics("==ERROR== Failed to find metric a__b.sum", ["a__b.sum", "a__b_c.sum"])
    ['a__b.sum']
    """
    lines = (line for line in said.splitlines() if not line.startswith('"'))
    named = {word.strip(".") for line in lines for word in re.findall(r"[\w.]+", line)}
    return [metric for metric in asked if metric in named or metric.split(".")[0] in named]


def _require_counted(scenario: Scenario, completed: Completed, said: str) -> None:
    if _REFUSED in said:
        raise NotAllowed(
            f"the driver refuses hardware counters to this user ({_REFUSED})",
            "no more counters were read; the timings are complete",
            "run as root, or set NVreg_RestrictProfilingToAdminUsers=0 for the driver",
        )
    if completed.timed_out or not completed.succeeded:
        how = "did not end in time" if completed.timed_out else f"ended with {completed.returncode}"
        raise ToolError(
            f"ncu {how} on {scenario.label()} ({completed.last_words or 'no message'})",
            "it has no counters; its timing stays",
            "run its script in the dataset's folder scripts under ncu by hand",
        )
    if "No kernels were profiled" in said or not said:
        raise ToolError(
            f"ncu saw no kernel in {scenario.label()}",
            "it has no counters; its timing stays",
            "see whether ncu --version knows this GPU and its driver",
        )
