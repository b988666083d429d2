"""`costprof sweep --budget`: a few scenarios of a real sweep, chosen, resumable and fitted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome, Run, runner

from costprof.costmodel.fit import fit_dataset
from costprof.profiler.dataset import read_measurements
from costprof.profiler.journal import Journal

SPEC = """
name = "few"
device = "cpu"
[experts.a]
d_model = 64
d_ff = 64
dtype = "float32"
[[measure]]
expert = "a"
tokens = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
[[layer]]
expert = "a"
experts = 4
top_k = 2
tokens = [2, 4, 8, 16]
distributions = ["balanced", "active-3"]
[[moe]]
name = "one"
top_k = 1
experts = [{ expert = "a", count = 2 }]
[timing]
target_ms = 2
remeasure = 0
threads = 1
max_robust_cv = 100
max_pass_disagreement = 100
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Return a runner of `costprof sweep`: of `what`, by default of `SPEC`, with arguments."""
    few = tmp_path / "few.toml"
    few.write_text(SPEC)
    out = ("--out", tmp_path / "ds", "--backend", "inprocess")
    sweep = runner(monkeypatch, capfd, "sweep")

    def call(*arguments: str, what: tuple[str, ...] = ()) -> Outcome:
        return sweep(*(what or (few,)), *out, *arguments)

    return call


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    rows: list[dict[str, Any]] = read_measurements(folder).to_pylist()
    by_id = {row["scenario_id"]: row for row in rows}
    assert len(by_id) == len(rows)  # nothing twice
    return by_id


def test_a_preset_is_measured_in_part_and_fitted(run: Run, tmp_path: Path) -> None:
    smoke = ("--preset", "cpu-smoke")
    code, printed, errors = run("--budget", "7", "--json", what=smoke)
    assert code == 0, errors
    said = json.loads(printed)["chosen"]
    assert (said["measured"], said["scenarios"], said["budget"]) == (7, 10, 7)
    assert said["stopped"] == "budget used"
    assert 0.0 < said["expected_error"] < 1.0
    rows = rows_of(tmp_path / "ds").values()
    assert len(rows) == 7
    experts: dict[str, list[int]] = {}
    for row in rows:
        if row["op"] == "expert":
            experts.setdefault(row["quantisation"], []).append(row["tokens"])
    assert {1, 16} <= set(experts["none"])
    assert {1, 16} <= set(experts["int4"])
    assert {moe.name for moe in fit_dataset(tmp_path / "ds").manifest.moes} == {"smoke"}


def test_a_budget_is_kept_and_what_was_chosen_is_told(run: Run, tmp_path: Path) -> None:
    code, printed, errors = run("--budget", "10")
    assert code == 0, errors
    assert len(rows_of(tmp_path / "ds")) == 10
    assert "measured 10 of 18 scenarios; expected error of the others " in printed
    assert "drawn by lot, each predicted without itself" in printed
    assert "stopped: budget used" in printed
    assert "the ends and middle of each curve: 6 scenarios: expert 64x64 float32 T=1" in errors
    assert "next, where it lowers that most: 4 scenarios: " in errors


def test_a_target_ends_the_sweep_early(run: Run, tmp_path: Path) -> None:
    code, printed, errors = run("--target-error", "0.9", "--json")
    assert code == 0, errors
    said = json.loads(printed)["chosen"]
    assert said["stopped"] == "target error reached"
    assert said["checks"] >= 5
    assert said["measured"] == len(rows_of(tmp_path / "ds")) < 18


def test_it_goes_on_where_it_was_cut_off(run: Run, tmp_path: Path) -> None:
    assert run("--budget", "14")[0] == 0
    before = rows_of(tmp_path / "ds")
    journal = Journal(tmp_path / "ds").path
    lines = journal.read_text().splitlines()
    done = [number for number, line in enumerate(lines) if '"event": "done"' in line]
    assert len(done) >= 4
    # As after kill -9 in the second step: its attempt stands in the journal, its end does not.
    journal.write_text("\n".join(lines[: done[2]]) + "\n")
    kept = {json.loads(lines[number])["run_id"] for number in done[:2]}
    for number in done[2:]:
        run_id = json.loads(lines[number])["run_id"]
        (tmp_path / "ds" / "measurements" / f"{run_id}.parquet").unlink()
    code, printed, errors = run("--budget", "14", "--resume")
    assert code == 0, errors
    after = rows_of(tmp_path / "ds")
    assert len(after) == 14
    first = {name for name, row in before.items() if any(row["run_id"].startswith(r) for r in kept)}
    assert first
    for name in first:
        assert after[name]["measured_at"] == before[name]["measured_at"]
    code, printed, _ = run("--budget", "14", "--resume", "--json")
    assert code == 0
    assert json.loads(printed)["measuring_s"] == 0.0
    assert rows_of(tmp_path / "ds") == after


def test_another_budget_is_another_plan(run: Run) -> None:
    assert run("--budget", "4")[0] == 0
    for other in (("--budget", "5"), ("--budget", "all")):
        code, _, errors = run(*other, "--resume")
        assert code == 2
        assert "holds a sweep of another plan" in errors


def test_few_scenarios_are_all_measured_and_it_says_so(run: Run) -> None:
    code, printed, errors = run("--dry-run")
    assert code == 0
    assert "note: all 18 scenarios are measured; --budget N chooses among them" in errors
    assert "18 scenarios in" in printed


def test_many_scenarios_are_not_all_measured_by_default(run: Run, tmp_path: Path) -> None:
    many = ", ".join(str(count) for count in range(1, 301))
    spec = SPEC.replace("[1, 2, 3, 4, 6, 8, 12, 16, 24, 32]", f"[{many}]")
    (tmp_path / "few.toml").write_text(spec)
    code, printed, errors = run("--dry-run")
    assert code == 0
    assert (
        "of 308 scenarios the most telling 200 at most are measured, until the expected" in errors
    )
    assert "200 of 308 scenarios are measured at most" in printed
    code, printed, errors = run("--dry-run", "--budget", "all")
    assert code == 0
    assert "308 scenarios in" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--budget", "0"), "--budget '0' is no number of scenarios; nothing was measured; give"),
        (("--budget", "some"), "--budget 'some' is no number of scenarios; nothing was measured"),
        (("--budget", "1"), "--budget 1 is less than the 2 curves of this sweep; some of its"),
        (("--target-error", "3"), "--target-error is 3.0; nothing was measured; give the mean"),
        (("--budget", "9", "--search", "tiles"), "choose scenarios, --search tiles tile configs"),
    ],
)
def test_bad_arguments_get_one_line(run: Run, arguments: tuple[str, ...], words: str) -> None:
    code, _, errors = run(*arguments)
    assert (code, errors.count("\n")) == (2, 1)
    assert words in errors
