"""Tools that stand on PATH for one test."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

MakeTool = Callable[[str, str], Path]


@pytest.fixture
def only_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is all of PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def make_tool(only_path: Path) -> MakeTool:
    """Make an executable Python script under a name on PATH."""

    def make(name: str, body: str) -> Path:
        path = only_path / name
        path.write_text(f"#!{sys.executable} -S\n{body}")
        path.chmod(0o755)
        assert os.access(path, os.X_OK)
        return path

    return make
