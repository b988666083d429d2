"""`costprof fit` and `costprof table`, end to end on a small known dataset."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from command_line import Run, runner

from costprof.core.device import detect_device, software_versions
from costprof.core.expert import ExpertClass, Kernel, class_id
from costprof.core.files import write_json
from costprof.core.work import op_work
from costprof.costmodel.tablefile import read_table, write_table
from costprof.profiler.dataset import write_measurements

EXPERT = ExpertClass(d_model=64, d_ff=128, dtype="float32")
KERNEL = Kernel(name="kernels:expert", framework="torch")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a runner of the command line."""
    return runner(monkeypatch, capfd)


def measurement(tokens: int, **other: Any) -> dict[str, Any]:
    work = op_work(EXPERT, "expert", tokens)
    latency = 5.0 + work.bytes / 8e3 + work.flops / 50e3
    return {
        **EXPERT.to_dict(),
        "class_id": class_id(EXPERT, "expert", KERNEL, "cold"),
        "op": "expert",
        "kernel": KERNEL.name,
        "kernel_source_hash": "",
        "framework": KERNEL.framework,
        "config": "{}",
        "cache_state": "cold",
        "tokens": tokens,
        "status": "ok",
        "latency_us_p05": 0.95 * latency,
        "latency_us_p50": latency,
        "latency_us_p95": 1.1 * latency,
        "n": 20,
        "num_threads": 1,
        **other,
    }


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset of this machine's CPU: six token counts of one class, and one that failed."""
    device = detect_device("cpu")
    rows = [measurement(n) for n in (1, 2, 4, 8, 16, 32)]
    rows.append(measurement(64, status="failed", latency_us_p50=None))
    for row in rows:
        row["device_name"] = device.name
    folder = tmp_path / "ds"
    write_measurements(folder, "run", rows)
    moe = {"name": "one", "top_k": 1, "class_of_expert": [rows[0]["class_id"]] * 2}
    write_json(
        folder / "sweep.json",
        {
            "schema_version": 1,
            "name": "known",
            "device": device.to_dict(),
            "software": software_versions(),
            "moes": [moe],
        },
    )
    return folder


@pytest.fixture
def table(dataset: Path, run: Run, tmp_path: Path) -> Path:
    path = tmp_path / "t.parquet"
    code, _, errors = run("fit", dataset, "--out", path)
    assert code == 0, errors
    return path


def test_fit_prints_figures_against_baselines(dataset: Path, run: Run, tmp_path: Path) -> None:
    code, printed, _ = run("fit", dataset, "--out", tmp_path / "new" / "t.parquet")
    assert code == 0
    assert "from 6 measurements (0 noisy, 1 failed and skipped)" in " ".join(printed.split())
    for words in ("costprof", "roofline alone", "linear in tokens", "interval", "MAPE"):
        assert words in printed
    assert "note: 1 curves had no energy; theirs comes from the power model" in printed


def test_fit_as_json_is_the_manifest(dataset: Path, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    _, printed, _ = run("fit", dataset, "--out", path, "--json")
    manifest = read_table(path).manifest
    said = json.loads(printed)
    assert said["content_hash"] == manifest.content_hash
    assert said["validation"]["latency"]["interior"]["model"]["points"] == 4


def test_fit_does_not_overwrite_without_force(table: Path, dataset: Path, run: Run) -> None:
    before = table.read_bytes()
    code, _, errors = run("fit", dataset, "--out", table)
    assert code == 2
    assert errors == (
        f"costprof: {table} exists; it was not overwritten; "
        "use --force or another name with --out\n"
    )
    assert table.read_bytes() == before
    assert run("fit", dataset, "--out", table, "--force")[0] == 0


@pytest.mark.parametrize("kind", ["missing", "empty", "failed"])
def test_fit_refuses_datasets_without_measurements(kind: str, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / kind
    words = {
        "missing": "there is no folder",
        "empty": "holds no measurements",
        "failed": "none of the 1 rows of",
    }
    if kind == "empty":
        folder.mkdir()
    if kind == "failed":
        write_measurements(folder, "run", [measurement(1, status="failed", latency_us_p50=None)])
    code, _, errors = run("fit", folder, "--out", tmp_path / "t.parquet")
    assert code in (2, 5)
    assert words[kind] in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "t.parquet").exists()


def test_show_says_what_the_table_is(table: Path, run: Run) -> None:
    code, printed, _ = run("table", "show", table)
    assert code == 0
    assert "from known: 6 measurements, 0 noisy, 1 failed" in printed
    assert "prices one: 2 experts of 1 classes, top 1" in printed
    assert "6 measured" in printed
    said = json.loads(run("table", "show", table, "--json")[1])
    assert said["moes"][0]["name"] == "one"
    assert said["tiers"]["measured"] == 6


def test_check_passes_here_and_fails_for_another_device(table: Path, run: Run) -> None:
    code, printed, _ = run("table", "check", table)
    assert (code, printed.count("ok")) == (0, 3)
    assert json.loads(run("table", "check", table, "--json")[1])["drifts"] == []
    file = read_table(table)
    elsewhere = replace(file.manifest.device, name="elsewhere")
    write_table(table, file.rows, replace(file.manifest, device=elsewhere))
    code, _, errors = run("table", "check", table)
    assert code == 7
    assert "the table was measured on elsewhere, this machine has" in errors


def test_check_names_a_damaged_table(table: Path, run: Run) -> None:
    file = read_table(table)
    text = file.manifest.to_json().replace('"one"', '"two"')
    pq.write_table(file.rows.replace_schema_metadata({b"costprof": text.encode()}), table)
    code, _, errors = run("table", "check", table)
    assert code == 6
    assert "does not match its hash" in errors


def test_check_says_that_a_table_was_brought_forward(run: Run, tmp_path: Path) -> None:
    path = Path(__file__).parents[1] / "costmodel" / "tables" / "version-1.parquet"
    file = read_table(path)
    code, _, errors = run("table", "check", path)
    assert (code, "measured on known CPU" in errors) == (7, True)
    assert run("table", "show", path)[0] == 0
    here = replace(file.manifest, device=detect_device("cpu"))
    write_table(tmp_path / "t.parquet", file.rows, here)
    assert "schema    ok, version 2\n" in run("table", "check", tmp_path / "t.parquet")[1]


def test_query_prices_an_expert(table: Path, run: Run) -> None:
    said = json.loads(run("table", "query", table, "--expert", "1", "--tokens", "8", "--json")[1])
    assert said["latency_us"] == pytest.approx(measurement(8)["latency_us_p50"])
    assert (said["tier"], said["energy_source"]) == ("measured", "modelled")
    assert "latency_us" in run("table", "query", table, "--expert", "1", "--tokens", "8")[1]


def test_query_runs_sql(table: Path, run: Run) -> None:
    sql = "SELECT count(*) AS n, 1.5 AS half, 'nan'::DOUBLE AS none FROM t WHERE tier = 'measured'"
    said = json.loads(run("table", "query", table, "--sql", sql, "--json")[1])
    assert said == [{"n": 6, "half": 1.5, "none": None}]
    assert "tokens" in run("table", "query", table, "--sql", "DESCRIBE t")[1]


def test_columns_of_one_name_are_all_shown(table: Path, run: Run) -> None:
    sql = "SELECT 1 AS a, 2 AS a, 3 AS a_2, 4 AS a"
    said = json.loads(run("table", "query", table, "--sql", sql, "--json")[1])
    assert said == [{"a": 1, "a_3": 2, "a_2": 3, "a_4": 4}]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "either --sql or --expert with --tokens is needed; nothing was asked"),
        (("--expert", "0"), "--tokens is missing; nothing was priced"),
        (("--expert", "9", "--tokens", "1"), "expert 9 of 2; it cannot be priced"),
        (("--expert", "0", "--tokens", "-1"), "tokens is -1; nothing was priced"),
        (("--sql", ""), "the SQL selects nothing; nothing was asked"),
        (("--sql", ";"), "the SQL selects nothing; nothing was asked"),
        (("--sql", "SELEC"), "DuckDB refuses the SQL (Parser Error"),
        (("--sql", "SELECT * FROM '/etc/hostname'"), "DuckDB refuses the SQL"),
    ],
)
def test_queries_that_cannot_be_answered(
    table: Path, run: Run, arguments: tuple[str, ...], words: str
) -> None:
    code, printed, errors = run("table", "query", table, *arguments)
    assert (code, printed) == (2, "")
    assert words in errors
    assert errors.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_refused_before_fitting(
    dataset: Path, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    code, _, errors = run("fit", dataset, "--out", tmp_path / "file" / "t.parquet")
    assert code == 2
    assert "cannot be written" in errors


def test_help_names_every_verb(run: Run) -> None:
    _, printed, _ = run("table", "--help")
    for verb in ("show", "check", "query"):
        assert verb in printed
