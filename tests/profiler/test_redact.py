from __future__ import annotations

from pathlib import Path

from costprof.profiler.redact import redact


def test_errors_enter_a_dataset_without_the_users_folders(tmp_path: Path) -> None:
    home, here = tmp_path / "ann", tmp_path / "ann" / "work"
    said = f"ValueError in {here}/k.py, called by {home}/.venv/x.py, not {tmp_path}/other.py"
    assert redact(said, home=home, here=here) == (
        f"ValueError in ./k.py, called by ~/.venv/x.py, not {tmp_path}/other.py"
    )
    assert redact("about /", home=Path("/"), here=Path("/")) == "about /"
    assert redact(None) is None
