"""Find nsys, compose its command lines, and say why a run of it left no report."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from costprof.core.errors import ToolError
from costprof.profiler.process import Completed, run_tool

_VERSION = re.compile(r"version\s+(\d+(?:\.\d+)+)")
_VERSION_TIMEOUT_S = 30.0
_OTHER_PLACES = ("/opt/nvidia/nsight-systems/*/bin/nsys", "/usr/local/cuda*/bin/nsys")


@dataclass(frozen=True, slots=True)
class NsysTool:
    """An nsys that runs. `version` is for comparing, `version_text` for printing."""

    path: Path
    version: tuple[int, ...]
    version_text: str


def find_nsys() -> NsysTool | None:
    """Return the nsys on PATH, else the newest in NVIDIA's folders, else None.

    A program that does not print an nsys version is passed over.
    """
    on_path = shutil.which("nsys")
    if on_path is not None:
        tool = _probe(Path(on_path))
        if tool is not None:
            return tool
    elsewhere = [path for pattern in _OTHER_PLACES for path in Path("/").glob(pattern[1:])]
    tools = [tool for path in elsewhere if (tool := _probe(path)) is not None]
    return max(tools, key=lambda tool: tool.version, default=None)


def require_nsys() -> NsysTool:
    """Return `find_nsys()`.

    Raises:
        ToolError: there is none.
    """
    tool = find_nsys()
    if tool is None:
        raise ToolError(
            "nsys was not found on PATH or in /opt/nvidia",
            "nothing can be profiled or exported with it",
            "install NVIDIA Nsight Systems, or choose another backend",
        )
    return tool


def parse_version(text: str) -> tuple[int, ...] | None:
    """Return the version in what `nsys --version` prints, or None.

    >>> parse_version("NVIDIA Nsight Systems version 2022.4.2.1-df9881f")
    (2022, 4, 2, 1)
    """
    match = _VERSION.search(text)
    return tuple(int(part) for part in match[1].split(".")) if match else None


def profile_command(
    tool: NsysTool, output: Path, trace: Sequence[str], command: Sequence[str]
) -> list[str]:
    """Return the arguments that profile `command` into `output` + `.nsys-rep`.

    Sampling and context-switch tracing are off: they need privileges and disturb what is timed.

    Args:
        tool: The nsys to run.
        output: Path of the report without its suffix.
        trace: APIs to trace, for example `("cuda", "nvtx")`.
        command: Program and arguments to profile.
    """
    # nsys expands %p, %h and %q{VARIABLE} in the name; %% stands for itself.
    name = os.fspath(output).replace("%", "%%")
    return [
        os.fspath(tool.path),
        "profile",
        f"--trace={','.join(trace)}",
        "--sample=none",
        "--cpuctxsw=none",
        "--force-overwrite=true",
        f"--output={name}",
        *command,
    ]


@contextlib.contextmanager
def scratch_environment() -> Iterator[dict[str, str]]:
    """Yield an environment whose TMPDIR is removed afterwards.

    A killed nsys leaves its raw capture in TMPDIR. The folder's path is kept short, because nsys
    also makes Unix sockets there, whose names may have 107 characters.
    """
    with tempfile.TemporaryDirectory(prefix="cpf-", ignore_cleanup_errors=True) as folder:
        yield {**os.environ, "TMPDIR": folder}


def check_profile(completed: Completed, report: Path, *, timeout_s: float) -> None:
    """Check that a finished `nsys profile` left `report`; its exit code alone does not tell.

    Raises:
        ToolError: it timed out, failed or left no report; names the reason as far as it is known.
    """
    consequence = "there is no report to read"
    if completed.timed_out:
        raise ToolError(
            f"nsys did not end within {timeout_s:.0f} s and was killed",
            consequence,
            "allow more time, or trace less",
        )
    if "importer binary" in completed.stdout + completed.stderr:
        raise ToolError(
            "nsys does not find its importer and left only a .qdstrm file",
            consequence,
            "link its host-linux-x64 folder to where nsys looks; on Debian: ln -sfn "
            "/usr/lib/nsight-systems/host-linux-x64 "
            "/usr/lib/x86_64-linux-gnu/nsight-systems/host-linux-x64",
        )
    if not report.is_file():
        words = completed.last_words or "it printed nothing"
        raise ToolError(
            f"nsys ended with code {completed.returncode} and left no {report.name} ({words})",
            consequence,
            "run the profiled program alone to see that it works, then try another nsys",
        )


def _probe(path: Path) -> NsysTool | None:
    try:
        completed = run_tool([path, "--version"], timeout_s=_VERSION_TIMEOUT_S)
    except ToolError:
        return None
    version = parse_version(completed.stdout)
    if not completed.succeeded or version is None:
        return None
    return NsysTool(path, version, ".".join(str(part) for part in version))
