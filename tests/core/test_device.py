from __future__ import annotations

import os
from pathlib import Path

import pytest

from costprof.core.device import DeviceFingerprint, _cpu_cache_bytes, detect_device
from costprof.core.errors import ToolError


def cache(root: Path, core: int, index: int, level: int, size: str, sharers: str) -> None:
    folder = root / f"cpu{core}" / "cache" / f"index{index}"
    folder.mkdir(parents=True)
    (folder / "level").write_text(f"{level}\n")
    (folder / "size").write_text(f"{size}\n")
    (folder / "shared_cpu_list").write_text(f"{sharers}\n")


def test_last_level_caches_add_up_over_the_cores_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for core, sharers in ((0, "0-1"), (1, "0-1"), (2, "2-3"), (3, "2-3")):
        cache(tmp_path, core, 2, 2, "1024K", str(core))
        cache(tmp_path, core, 3, 3, "32M", sharers)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    assert _cpu_cache_bytes(tmp_path) == 64 * 2**20
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1})
    assert _cpu_cache_bytes(tmp_path) == 32 * 2**20
    assert _cpu_cache_bytes(tmp_path / "nothing") == 0


def test_a_gpu_asked_for_and_not_there_is_never_called_a_cpu() -> None:
    if detect_device().kind == "gpu":
        pytest.skip("this machine has a GPU")
    with pytest.raises(ToolError, match="NVML shows no NVIDIA GPU"):
        detect_device("gpu")
    assert detect_device("cpu").kind == "cpu"


def test_another_driver_is_another_id_of_the_same_model() -> None:
    first = DeviceFingerprint(kind="gpu", name="A", driver="1")
    second = DeviceFingerprint(kind="gpu", name="A", driver="2")
    assert first.device_id != second.device_id
    assert first.name == second.name
