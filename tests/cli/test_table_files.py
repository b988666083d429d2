"""`costprof table merge` and the plain formats of `costprof table export`."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import duckdb
import pytest
from command_line import Run, runner

from costprof.costmodel.rows import TABLE_SCHEMA
from costprof.costmodel.tablefile import read_table, write_table

TABLES = Path(__file__).parents[1] / "costmodel" / "tables"
FULL, EXPERTS = TABLES / "version-1.parquet", TABLES / "version-1-experts.parquet"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a runner of `costprof table`."""
    return runner(monkeypatch, capfd, "table")


def test_merging_says_whose_rows_were_taken(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "new" / "m.parquet"
    code, printed, _ = run("merge", EXPERTS, FULL, "--out", out)
    assert code == 0
    assert printed.splitlines()[:3] == [
        f"{out}: 14 rows",
        f"  14 from {EXPERTS}",
        f"  0 from {FULL}",
    ]
    name = f"known ({read_table(FULL).manifest.content_hash[:8]})"
    assert f"fitted to the rows of {name}, not all its rows are from there" in printed
    merged = read_table(out)
    assert merged.rows.equals(read_table(EXPERTS).rows)
    assert len(merged.manifest.tiled_layers) == 3
    code, printed, _ = run("merge", FULL, FULL, "--out", out, "--force", "--json")
    said = json.loads(printed)
    assert (said["rows_taken"], said["notes"]) == ([14, 0], [])
    assert said["content_hash"] == read_table(FULL).manifest.content_hash


def test_merging_refuses_what_it_cannot_do(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "m.parquet"
    assert "there is one table only; nothing was merged" in run("merge", FULL, "--out", out)[2]
    assert "is a folder; no table was written" in run("merge", FULL, FULL, "--out", tmp_path)[2]
    assert not out.exists()
    run("merge", FULL, FULL, "--out", out)
    before = out.read_bytes()
    code, _, errors = run("merge", FULL, EXPERTS, "--out", out)
    assert (code, out.read_bytes()) == (2, before)
    assert "exists; it was not overwritten; use --force" in errors


def test_csv_holds_every_row(run: Run, tmp_path: Path) -> None:
    code, printed, _ = run("export", FULL, "--out", tmp_path, "--format", "csv")
    target = tmp_path / "version-1.csv"
    assert (code, printed) == (0, f"{target}: 14 rows, without the manifest\n")
    rows = read_table(FULL).rows.to_pylist()
    with target.open(newline="") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == TABLE_SCHEMA.names
    assert [float(row["latency_us_p50"]) for row in read] == [row["latency_us_p50"] for row in rows]
    assert json.loads(read[0]["counters"]) == {"dram_bytes": 1.5e6}
    assert {row["experts"] for row in read} == {""}
    found = duckdb.sql(f"SELECT count(*), min(tokens) FROM '{target}'").fetchone()
    assert found == (14, 1)


def test_json_holds_the_manifest_too(run: Run, tmp_path: Path) -> None:
    file = read_table(FULL)
    path = tmp_path / "t.parquet"
    write_table(path, file.rows, file.manifest, b"a model")
    code, printed, _ = run("export", path, "--out", tmp_path / "new", "--format", "json", "--json")
    assert code == 0
    assert json.loads(printed)["left_out"] == ["model"]
    said = json.loads((tmp_path / "new" / "t.json").read_text())
    assert said["manifest"] == read_table(path).manifest.to_dict()
    expected = file.rows.to_pylist()
    for row in expected:
        row["counters"] = dict(row["counters"])
    assert said["rows"] == expected


def test_exports_refuse_what_has_no_meaning(run: Run, tmp_path: Path) -> None:
    code, _, errors = run("export", FULL, "--out", tmp_path, "--format", "csv", "--moe", "one")
    assert code == 2
    assert "--moe with --format csv; no file was written; all rows are written" in errors
    _, _, errors = run("export", FULL, "--out", tmp_path, "--format", "xml")
    assert "--format 'xml' is unknown; no file was written; use vllm, sglang, csv or json" in errors
    (tmp_path / "version-1.csv").write_text("mine")
    code, _, errors = run("export", FULL, "--out", tmp_path, "--format", "csv")
    assert "exists; it was not overwritten; use --force" in errors
    assert (tmp_path / "version-1.csv").read_text() == "mine"
    assert run("export", FULL, "--out", tmp_path, "--format", "csv", "--force")[0] == 0
