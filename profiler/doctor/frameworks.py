"""torch and triton: their versions, and what they can run here."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys

from costprof.core.errors import ToolError
from costprof.profiler.doctor.check import Check
from costprof.profiler.process import run_tool

TORCH, TRITON = "torch", "triton"
_PROBE = "costprof.profiler.doctor.triton_probe"
_PROBE_TIMEOUT_S = 120.0


def torch_check(*, gpu_found: bool) -> Check:
    """Import torch and make a matrix product on the device it will measure.

    Args:
        gpu_found: Whether the driver shows a GPU, which a torch without CUDA would not use.
    """
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check(
            TORCH,
            "missing",
            f"it cannot be imported ({error})",
            "nothing can be measured",
            "pip install torch",
        )
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    found = f"{torch.__version__} ({build})"
    if not torch.cuda.is_available():
        if gpu_found:
            return Check(
                TORCH,
                "degraded",
                f"{found} sees no CUDA device, though the driver shows a GPU",
                "experts are measured on the CPU",
                "install the CUDA build of torch that fits the driver; see CUDA_VISIBLE_DEVICES",
            )
        return Check(TORCH, "ok", f"{found}, {torch.get_num_threads()} threads on the CPU")
    try:
        ones = torch.ones(64, 64, device="cuda")
        right = float((ones @ ones).sum()) == 64.0**3
    except RuntimeError as error:
        return Check(
            TORCH,
            "degraded",
            f"{found} fails on the GPU ({str(error).splitlines()[0]})",
            "experts can be measured on the CPU alone (--device cpu)",
            "install the build of torch that fits this GPU and driver",
        )
    if not right:
        return Check(
            TORCH,
            "degraded",
            f"{found} computes wrongly on the GPU",
            "no measurement of the GPU can be trusted",
            "see dmesg for Xid errors and nvidia-smi -q for ECC errors",
        )
    return Check(TORCH, "ok", f"{found} on {torch.cuda.get_device_name()}")


def triton_check(
    *, on_gpu: bool, command: tuple[str, ...] = (sys.executable, "-m", _PROBE)
) -> Check:
    """Run a small triton kernel in a process of its own, because triton picks its mode at import.

    Args:
        on_gpu: Compile it for the GPU; else it runs in triton's interpreter.
        command: Runs the probe, which prints a line of JSON.
    """
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return Check(
            TRITON,
            "missing",
            "not installed",
            "kernels written in triton cannot be measured; torch's can",
            "pip install triton (Linux only)",
        )
    outcome = _run_probe(command, on_gpu=on_gpu)
    if "mode" not in outcome:
        return Check(
            TRITON,
            "degraded",
            f"{version}, but a small kernel fails ({outcome['error']})",
            "kernels written in triton cannot be measured; torch's can",
            "install the triton that this torch asks for, and a C compiler",
        )
    if outcome["mode"] == "interpreted":
        return Check(
            TRITON,
            "degraded",
            f"{version}, a small kernel ran in its interpreter",
            "without a GPU kernels can be checked (not in bfloat16) but not timed",
            "run on a machine with a GPU",
        )
    return Check(TRITON, "ok", f"{version}, a small kernel compiled and ran on the GPU")


def _run_probe(command: tuple[str, ...], *, on_gpu: bool) -> dict[str, str]:
    environment = dict(os.environ) if on_gpu else {**os.environ, "TRITON_INTERPRET": "1"}
    try:
        completed = run_tool(command, timeout_s=_PROBE_TIMEOUT_S, env=environment)
    except ToolError as error:
        return {"error": error.fact}
    if completed.timed_out:
        return {"error": f"it did not end within {_PROBE_TIMEOUT_S:.0f} s"}
    lines = completed.stdout.strip().splitlines()
    try:
        outcome = json.loads(lines[-1]) if completed.succeeded and lines else {}
    except ValueError:
        outcome = {}
    if isinstance(outcome, dict) and outcome.get("mode") in ("compiled", "interpreted"):
        return {"mode": outcome["mode"]}
    return {"error": completed.last_words or f"it ended with code {completed.returncode}"}
