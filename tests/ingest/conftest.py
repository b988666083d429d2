"""Where the real exports and reports lie."""

from __future__ import annotations

from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "../shared/data"


@pytest.fixture
def nsys_data() -> Path:
    folder = DATA / "nsys"
    if not folder.is_dir():
        pytest.skip("the real nsys exports are not on this machine")
    return folder


@pytest.fixture
def ncu_data() -> Path:
    folder = DATA / "ncu"
    if not folder.is_dir():
        pytest.skip("the real ncu report is not on this machine")
    return folder
