"""All checks in turn, and what they add up to: the backends and energy readings of a machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from costprof.profiler.doctor.check import Check
from costprof.profiler.doctor.counters import ncu_check, permission_check
from costprof.profiler.doctor.frameworks import TORCH, torch_check, triton_check
from costprof.profiler.doctor.gpu import ENERGY, POWER, gpu_checks
from costprof.profiler.doctor.host import host_checks
from costprof.profiler.doctor.nsight import ROUND_TRIP, nsys_checks
from costprof.profiler.doctor.storage import DUCKDB, duckdb_check


@dataclass(frozen=True, slots=True)
class Report:
    """Every check, in the order of a reader's questions."""

    checks: tuple[Check, ...]
    cuda: bool

    def status(self, name: str) -> str:
        """Status of the check called `name`, `missing` if there is none."""
        return next((check.status for check in self.checks if check.name == name), "missing")

    @property
    def device(self) -> str:
        """`cuda`, `cpu`, or `none` where torch does not run."""
        if self.status(TORCH) == "missing":
            return "none"
        return "cuda" if self.cuda else "cpu"

    @property
    def unusable(self) -> dict[str, str]:
        """Every backend of `costprof sweep`, with the check that rules it out or an empty text."""
        no_torch = TORCH if self.device == "none" else ""
        blocking = (TORCH, ROUND_TRIP, DUCKDB)
        nsys = next((name for name in blocking if self.status(name) == "missing"), "")
        return {"nsys": nsys, "torch-profiler": no_torch, "inprocess": no_torch}

    @property
    def auto_backend(self) -> str:
        """What `--backend auto` takes: on a CPU nsys if it can, else `inprocess`, else `none`."""
        if self.device == "none":
            return "none"
        return "inprocess" if self.cuda or self.unusable["nsys"] else "nsys"

    @property
    def energy_source(self) -> str:
        """Best source of energy figures that the machine offers."""
        if self.device == "cuda" and self.status(ENERGY) == "ok":
            return "nvml_counter"
        if self.device == "cuda" and self.status(POWER) == "ok":
            return "nvml_integral"
        return "modelled"

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {
            "checks": [check.to_dict() for check in self.checks],
            "device": self.device,
            "backends": {
                name: {"usable": not reason, "ruled_out_by": reason}
                for name, reason in self.unusable.items()
            },
            "auto_backend": self.auto_backend,
            "energy_source_offered": self.energy_source,
        }


def examine(progress: Callable[[str], None] = lambda name: None) -> Report:
    """Make every check; takes seconds, because nsys and triton really run.

    Args:
        progress: Called with the name of what is about to be examined.
    """
    progress("GPU")
    gpu = gpu_checks()
    progress("torch")
    torch = torch_check(gpu_found=gpu[0].status == "ok")
    cuda = _cuda_works(torch)
    progress("triton")
    triton = triton_check(on_gpu=cuda)
    progress("nsys")
    nsys = nsys_checks()
    progress("ncu")
    counters = [ncu_check(), permission_check()]
    progress("DuckDB")
    duckdb = duckdb_check()
    checks = (*host_checks(), *gpu, torch, triton, *nsys, *counters, duckdb)
    return Report(checks, cuda)


def _cuda_works(torch_found: Check) -> bool:
    if torch_found.status != "ok":
        return False
    import torch

    return torch.cuda.is_available()
