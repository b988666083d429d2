"""Where results go: looked at before any work, and nothing made meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from costprof.cli.outputs import check_dataset, check_out
from costprof.core.errors import InputError


def test_folders_yet_to_be_made_are_fine_and_not_made(tmp_path: Path) -> None:
    check_out(tmp_path / "a" / "b" / "t.parquet", force=False, consequence="nothing was done")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("parent", ["/proc/none", "/proc/none/below"])
def test_folders_that_cannot_be_made_are_refused_at_once(parent: str) -> None:
    with pytest.raises(InputError, match=r"/proc cannot be written .*nothing was started"):
        check_out(Path(parent) / "t.parquet", force=True, consequence="nothing was done")


def test_a_file_is_no_folder_to_write_in(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file cannot be written"):
        check_out(tmp_path / "file" / "t.parquet", force=True, consequence="nothing was done")


def test_of_a_file_or_nothing_the_way_to_a_dataset_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.parquet").touch()
    with pytest.raises(
        InputError, match=r"is a file, .*ingest --format aiconfigurator .*m.parquet"
    ):
        check_dataset(tmp_path / "m.parquet", "nothing was fitted")
    with pytest.raises(InputError, match=r"no folder .*costprof sweep .*costprof ingest"):
        check_dataset(tmp_path / "none", "nothing was fitted")
