"""Finding nsys, composing its command line, reading its failures."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from costprof.core.errors import ToolError
from costprof.profiler.nsys import tool as nsys_tool
from costprof.profiler.nsys.tool import NsysTool, check_profile, find_nsys, parse_version
from costprof.profiler.process import Completed


def _fake(folder: Path, output: str, code: int = 0) -> Path:
    folder.mkdir()
    path = folder / "nsys"
    path.write_text(
        f"#!{sys.executable}\nimport sys\nprint({output!r})\nsys.exit({code})\n", encoding="utf-8"
    )
    path.chmod(0o755)
    return path


def _completed(code: int = 0, stdout: str = "", *, timed_out: bool = False) -> Completed:
    return Completed(("nsys",), code, timed_out, 1.0, stdout, "")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVIDIA Nsight Systems version 2022.4.2.1-df9881f", (2022, 4, 2, 1)),
        ("NVIDIA Nsight Systems version 2024.6.2.225-246235244400v0", (2024, 6, 2, 225)),
        ("not a profiler", None),
    ],
)
def test_version(text: str, version: tuple[int, ...] | None) -> None:
    assert parse_version(text) == version


def test_nsys_on_path_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _fake(tmp_path / "bin", "NVIDIA Nsight Systems version 2031.1.0.7-x")
    monkeypatch.setenv("PATH", str(path.parent))
    assert find_nsys() == NsysTool(path, (2031, 1, 0, 7), "2031.1.0.7")


def test_a_broken_nsys_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _fake(tmp_path / "bin", "version 2031.1", code=1)
    monkeypatch.setenv("PATH", str(path.parent))
    monkeypatch.setattr(nsys_tool, "_OTHER_PLACES", ())
    assert find_nsys() is None
    with pytest.raises(ToolError, match="nsys was not found on PATH"):
        nsys_tool.require_nsys()


def test_the_newest_elsewhere_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake(tmp_path / "a", "version 2024.10.1")
    newest = _fake(tmp_path / "b", "version 2025.2.1")
    _fake(tmp_path / "c", "version 2024.9.1")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(nsys_tool, "_OTHER_PLACES", (f"{tmp_path}/*/nsys",))
    found = find_nsys()
    assert found is not None
    assert found.path == newest


def test_profile_command_escapes_the_name_nsys_would_expand() -> None:
    tool = NsysTool(Path("/x/nsys"), (2022, 4), "2022.4")
    command = nsys_tool.profile_command(tool, Path("/r/50%p"), ("cuda", "nvtx"), ["python", "-V"])
    assert command[:3] == ["/x/nsys", "profile", "--trace=cuda,nvtx"]
    assert "--output=/r/50%%p" in command
    assert command[-2:] == ["python", "-V"]


def test_scratch_environment_is_short_and_removed() -> None:
    with nsys_tool.scratch_environment() as environment:
        folder = Path(environment["TMPDIR"])
        assert folder.is_dir()
        assert environment["PATH"] == os.environ["PATH"]
    assert not folder.exists()


@pytest.mark.parametrize(
    ("completed", "message"),
    [
        (_completed(143, timed_out=True), "nsys did not end within 9 s and was killed"),
        (
            _completed(0, "The importer binary and its dependencies were not found."),
            "does not find its importer and left only a .qdstrm file",
        ),
        (_completed(1, "boom"), r"ended with code 1 and left no r\.nsys-rep \(boom\)"),
        (_completed(0), r"ended with code 0 and left no r\.nsys-rep \(it printed nothing\)"),
    ],
)
def test_a_run_without_a_report_is_explained(
    tmp_path: Path, completed: Completed, message: str
) -> None:
    with pytest.raises(ToolError, match=message):
        check_profile(completed, tmp_path / "r.nsys-rep", timeout_s=9)


def test_a_report_passes(tmp_path: Path) -> None:
    report = tmp_path / "r.nsys-rep"
    report.touch()
    # The profiled program's own exit code comes through nsys; the report is what counts.
    check_profile(_completed(5), report, timeout_s=9)
