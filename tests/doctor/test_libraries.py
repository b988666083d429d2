"""DuckDB, torch, triton and the host: really tried, and what is said when they fail."""

from __future__ import annotations

import importlib.metadata
import sys
import tempfile
from pathlib import Path

import duckdb_extension_sqlite_scanner
import pytest
import torch

from costprof.core.device import DeviceFingerprint
from costprof.profiler.doctor.frameworks import torch_check, triton_check
from costprof.profiler.doctor.host import host_checks
from costprof.profiler.doctor.storage import duckdb_check


def test_duckdb_reads_sqlite() -> None:
    found = duckdb_check()
    assert found.status == "ok"
    assert found.found == (
        f"DuckDB {importlib.metadata.version('duckdb')} with the packaged extension, offline"
    )


def test_duckdb_with_an_extension_of_another_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "extensions" / "v0.1.0").mkdir(parents=True)
    monkeypatch.setattr(duckdb_extension_sqlite_scanner, "__file__", str(tmp_path / "x.py"))
    found = duckdb_check()
    assert found.status == "missing"
    assert "is for DuckDB v0.1.0, installed is v" in found.found
    assert found.way_out.startswith("pip install duckdb-extension-sqlite-scanner==")


def test_duckdb_with_a_damaged_extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "extensions" / f"v{importlib.metadata.version('duckdb')}"
    folder.mkdir(parents=True)
    (folder / "sqlite_scanner.duckdb_extension").write_bytes(b"not a library")
    monkeypatch.setattr(duckdb_extension_sqlite_scanner, "__file__", str(tmp_path / "x.py"))
    found = duckdb_check()
    assert found.status == "missing"
    assert "does not load into DuckDB" in found.found


def test_duckdb_without_a_place_for_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    found = duckdb_check()
    assert found.status == "missing"
    assert "TMPDIR" in found.way_out


def test_torch() -> None:
    found = torch_check(gpu_found=torch.cuda.is_available())
    assert found.status == "ok"
    assert found.found.startswith(torch.__version__)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU")
def test_torch_that_does_not_see_the_gpu() -> None:
    found = torch_check(gpu_found=True)
    assert found.status == "degraded"
    assert "sees no CUDA device, though the driver shows a GPU" in found.found
    assert "CUDA build" in found.way_out


def test_torch_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = torch_check(gpu_found=False)
    assert (found.status, found.consequence) == ("missing", "nothing can be measured")


def test_triton_in_its_interpreter() -> None:
    found = triton_check(on_gpu=False)
    assert found.status == "degraded"
    assert found.found.endswith("a small kernel ran in its interpreter")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_triton_on_the_gpu() -> None:
    assert triton_check(on_gpu=True).status == "ok"


def probe(body: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", body)


def test_triton_that_compiles() -> None:
    found = triton_check(on_gpu=True, command=probe('print(\'{"mode": "compiled"}\')'))
    assert found.status == "ok"


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("raise RuntimeError('no compiler')", "fails (RuntimeError: no compiler)"),
        ("print('not json')", "fails (not json)"),
        ("print('[1]')", "fails ([1])"),
        ("", "fails (it ended with code 0)"),
    ],
)
def test_triton_that_fails(body: str, found: str) -> None:
    check = triton_check(on_gpu=False, command=probe(body))
    assert check.status == "degraded"
    assert found in check.found
    assert check.way_out


def test_triton_that_cannot_be_started() -> None:
    found = triton_check(on_gpu=False, command=("/no/such/python",))
    assert "cannot be started" in found.found


def test_triton_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(package: str) -> str:
        if package == "triton":
            raise importlib.metadata.PackageNotFoundError(package)
        return real(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = triton_check(on_gpu=False)
    assert (found.status, found.found) == ("missing", "not installed")


def test_host() -> None:
    python, cpu = host_checks()
    assert python.status == "ok"
    assert python.found.startswith(".".join(map(str, sys.version_info[:3])))
    assert "cores in use" in cpu.found


def test_host_whose_cache_is_known() -> None:
    cpu = DeviceFingerprint(
        kind="cpu", name="X", units=4, memory_bytes=2**34, cache_bytes=33 * 2**20
    )
    found = host_checks(cpu)[1]
    assert found.status == "ok"
    assert found.found == "X, 4 cores in use, last-level cache 33 MiB, memory 16,384 MiB"


def test_host_whose_cache_cannot_be_read() -> None:
    found = host_checks(DeviceFingerprint(kind="cpu", name="X", memory_bytes=2**34))[1]
    assert found.status == "degraded"
    assert "last-level cache unknown" in found.found
    assert "unknown cores" in found.found
    assert "'cold' may not be cold" in found.consequence
