from __future__ import annotations

import json
from pathlib import Path

import pytest

from costprof.core.errors import DatasetError, InputError
from costprof.profiler.journal import Journal, check_folder, sweep_lock


def test_a_torn_line_loses_only_itself(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append("attempt", run_id="a", mark="m1")
    journal.append("done", run_id="a", statuses={"ok": 1})
    with journal.path.open("ab") as file:
        file.write(b'{"event": "attempt", "run_')
    journal.append("attempt", run_id="b", mark="m2")
    assert [event["event"] for event in journal.events()] == ["attempt", "done", "attempt"]
    assert journal.done_runs().keys() == {"a"}
    assert journal.unfinished_marks() == ["m2"]


def test_a_folder_takes_one_sweep_at_a_time(tmp_path: Path) -> None:
    with (
        sweep_lock(tmp_path),
        pytest.raises(InputError, match="another sweep is writing"),
        sweep_lock(tmp_path),
    ):
        pass
    with sweep_lock(tmp_path):
        pass


def test_a_folder_that_holds_a_sweep_needs_resume_and_the_same_plan(tmp_path: Path) -> None:
    def check(plan: str = "p1", backend: str = "nsys", device: str = "A", *, resume: bool) -> None:
        check_folder(tmp_path, plan, backend=backend, device=device, resume=resume)

    check(resume=False)
    found = {"plan_id": "p1", "backend": "nsys", "device": {"name": "A"}}
    (tmp_path / "sweep.json").write_text(json.dumps(found))
    check(resume=True)
    with pytest.raises(InputError, match="add --resume"):
        check(resume=False)
    with pytest.raises(InputError, match="another plan"):
        check("p2", resume=True)
    with pytest.raises(InputError, match="with backend nsys, this would go on with inprocess"):
        check(backend="inprocess", resume=True)
    with pytest.raises(InputError, match="with device A, this would go on with B"):
        check(device="B", resume=True)
    for damaged in ("{", "[]", "3"):
        (tmp_path / "sweep.json").write_text(damaged)
        with pytest.raises(DatasetError, match="is damaged"):
            check(resume=True)
