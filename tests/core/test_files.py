from __future__ import annotations

from pathlib import Path

import pytest

from costprof.core.errors import InputError
from costprof.core.files import remove_partial_files, replacing, writable_folder, write_json


def test_a_failed_write_keeps_the_old_content_and_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == '{\n  "a": 1\n}\n'
        raise RuntimeError
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_being_written_matches_no_glob_of_its_kind(tmp_path: Path) -> None:
    with replacing(tmp_path / "part.parquet") as temporary:
        temporary.write_text("x")
        assert list(tmp_path.glob("*.parquet")) == []
    assert [path.name for path in tmp_path.glob("*.parquet")] == ["part.parquet"]


def test_what_a_killed_writer_left_can_be_removed(tmp_path: Path) -> None:
    with replacing(tmp_path / "sub" / "part.parquet") as temporary:
        remove_partial_files(tmp_path)
        assert temporary.exists()
        remove_partial_files(tmp_path / "sub")
        assert not temporary.exists()
        temporary.write_text("again")
    assert (tmp_path / "sub" / "part.parquet").exists()


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written") as caught:
        writable_folder(tmp_path / "file")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be written"):
        writable_folder(tmp_path / "file" / "below")
