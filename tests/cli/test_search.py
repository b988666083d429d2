"""`costprof sweep --search tiles`: chosen step by step, resumable, and fitted like any sweep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Run, runner

from costprof.costmodel.table import CostTable
from costprof.profiler.dataset import read_measurements
from costprof.profiler.journal import Journal

SPEC = """
name = "tiles"
device = "cpu"
[experts.a]
d_model = 64
d_ff = 64
dtype = "float32"
[[measure]]
expert = "a"
tokens = [4, 32]
kernels = { expert = "costprof.runtime.kernels.torch_blocked:swiglu" }
[[measure]]
expert = "a"
ops = ["fc2"]
tokens = [4]
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
    """Return a runner of `costprof sweep` on `SPEC`."""
    spec = tmp_path / "tiles.toml"
    spec.write_text(SPEC)
    out = ("--out", tmp_path / "ds", "--backend", "inprocess")
    return runner(monkeypatch, capfd, "sweep", spec, *out)


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    rows: list[dict[str, Any]] = read_measurements(folder).to_pylist()
    by_id = {row["scenario_id"]: row for row in rows}
    assert len(by_id) == len(rows)  # nothing twice
    return by_id


def test_a_search_measures_a_few_configs_and_names_the_best(run: Run, tmp_path: Path) -> None:
    code, printed, errors = run("--search", "tiles", "--search-budget", "0.15", "--json")
    assert code == 0, errors
    said = json.loads(printed)
    rows = rows_of(tmp_path / "ds")
    tiled = [row for row in rows.values() if row["op"] == "expert"]
    assert len(rows) == len(tiled) + 1
    assert [winner["tokens"] for winner in said["tiles"]] == [4, 32]
    for winner in said["tiles"]:
        mine = [row for row in tiled if row["tokens"] == winner["tokens"]]
        # 5 · 2 · 2 · 3 configs fit 64 x 64; 15 % of 60, and the other token count's winner.
        assert winner["configs"] == 60
        assert 8 <= winner["measured"] == len(mine) <= 9 + 1
        assert winner["stopped"] in ("budget used", "gain below noise")
        (row,) = [row for row in mine if json.loads(row["config"]) == winner["config"]]
        assert row["latency_us_p50"] == winner["latency_us_p50"]
    for winner in said["tiles"]:  # each winner has a curve over both token counts
        text = json.dumps(winner["config"], sort_keys=True)
        assert {row["tokens"] for row in tiled if row["config"] == text} == {4, 32}

    from costprof.costmodel.fit import fit_dataset

    fitted = fit_dataset(tmp_path / "ds")
    table = CostTable(fitted.rows, fitted.manifest)
    for tokens in (4, 32):
        least = min(
            (row for row in tiled if row["tokens"] == tokens),
            key=lambda row: row["latency_us_p50"],
        )
        assert table.best_config(0, tokens) == json.loads(least["config"])
        assert table.cost(0, tokens).tier == "measured"


def test_a_search_goes_on_where_it_was_cut_off(run: Run, tmp_path: Path) -> None:
    search = ("--search", "tiles", "--search-budget", "0.15")
    assert run(*search)[0] == 0
    before = rows_of(tmp_path / "ds")
    journal = Journal(tmp_path / "ds").path
    lines = journal.read_text().splitlines()
    done = [number for number, line in enumerate(lines) if '"event": "done"' in line]
    assert len(done) >= 3
    # As after kill -9 in the second step: its attempt stands in the journal, its end does not.
    journal.write_text("\n".join(lines[: done[1]]) + "\n")
    kept = json.loads(lines[done[0]])["run_id"]
    for number in done[1:]:
        run_id = json.loads(lines[number])["run_id"]
        (tmp_path / "ds" / "measurements" / f"{run_id}.parquet").unlink()
    code, printed, errors = run(*search, "--resume")
    assert code == 0, errors
    assert "2 of" not in printed
    after = rows_of(tmp_path / "ds")
    first = {name for name, row in before.items() if row["run_id"].startswith(kept)}
    assert first
    for name in first:
        assert after[name]["measured_at"] == before[name]["measured_at"]
    again = run(*search, "--resume", "--json")
    assert again[0] == 0
    assert json.loads(again[1])["measuring_s"] == 0.0
    assert rows_of(tmp_path / "ds") == after


def test_a_search_is_another_plan_than_the_sweep_without(run: Run) -> None:
    assert run("--search", "tiles", "--search-budget", "0.1")[0] == 0
    code, _, errors = run("--resume")
    assert code == 2
    assert "holds a sweep of another plan" in errors
    code, _, errors = run("--search", "tiles", "--search-budget", "0.2", "--resume")
    assert code == 2
    assert "holds a sweep of another plan" in errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--search", "tile"), "--search 'tile' is unknown; nothing was measured; use --search"),
        (("--search", "tiles", "--search-budget", "0"), "--search-budget is 0.0; nothing was"),
    ],
)
def test_bad_arguments_get_one_line(run: Run, arguments: tuple[str, ...], words: str) -> None:
    code, _, errors = run(*arguments)
    assert (code, errors.count("\n")) == (2, 1)
    assert words in errors


def test_kernels_without_a_tile_space_cannot_be_searched(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tmp_path / "tiles.toml"
    spec.write_text(SPEC.replace("torch_blocked:swiglu", "torch_ffn:swiglu"))
    code, _, errors = run("--search", "tiles")
    assert (code, errors.count("\n")) == (2, 1)
    assert "no kernel of this sweep has a tile_space" in errors


def test_a_dry_run_prints_the_start(run: Run, tmp_path: Path) -> None:
    code, printed, _ = run("--search", "tiles", "--dry-run")
    assert code == 0
    assert "17 scenarios in" in printed
    assert "the search measures 16 tile configs at most" in printed
    assert not (tmp_path / "ds").exists()
