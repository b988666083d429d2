"""Bad input gets one line of three parts, a non-zero exit and leaves nothing half-written."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import run_apart

from costprof.core.device import DeviceFingerprint
from costprof.core.expert import ExpertClass, Kernel
from costprof.costmodel.manifest import Manifest, MoeSpec
from costprof.costmodel.rows import TableRow, rows_table
from costprof.costmodel.table import write_table


def truncated_sqlite(folder: Path) -> Path:
    path = folder / "export.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE META_DATA_EXPORT (name TEXT, value TEXT)")
        connection.executemany(
            "INSERT INTO META_DATA_EXPORT VALUES (?, ?)", [(str(i), "x" * 400) for i in range(200)]
        )
    connection.close()
    path.write_bytes(path.read_bytes()[:-9000])
    return path


def text_as_sqlite(folder: Path) -> Path:
    path = folder / "export.sqlite"
    path.write_text("these are not the bytes you are looking for\n" * 50)
    return path


def other_parquet(folder: Path) -> Path:
    path = folder / "table.parquet"
    pq.write_table(pa.table({"a": [1, 2]}), path)
    return path


def table_of_another_gpu(folder: Path) -> Path:
    row = TableRow(
        expert=ExpertClass(d_model=64, d_ff=64),
        kernel=Kernel(name="m:f"),
        tokens=1,
        latency_us=(1.0, 1.0, 1.0),
        energy_mj=(1.0, 1.0, 1.0),
    )
    manifest = Manifest(
        device=DeviceFingerprint(kind="gpu", name="NVIDIA Imaginary 100"),
        moes=(MoeSpec(name="m", top_k=1, class_of_expert=(row.class_id,)),),
    )
    path = folder / "table.parquet"
    write_table(path, rows_table([row]), manifest)
    return path


def spec_with_negative_tokens(folder: Path) -> Path:
    path = folder / "sweep.toml"
    path.write_text(
        'name = "x"\n[experts.a]\nd_model = 64\nd_ff = 64\n'
        '[[measure]]\nexpert = "a"\ntokens = [-3]\n'
    )
    return path


CASES: dict[str, tuple[Callable[[Path], Path] | None, list[str], str]] = {
    "unknown preset": (None, ["sweep", "--preset", "cpu-demoo", "--out", "{out}"], "cpu-demoo"),
    "negative tokens in a spec": (
        spec_with_negative_tokens,
        ["sweep", "{input}", "--out", "{out}"],
        "measure.0.tokens.0",
    ),
    "two things to measure": (
        spec_with_negative_tokens,
        ["sweep", "{input}", "--preset", "cpu-smoke", "--out", "{out}"],
        "give exactly one",
    ),
    "no output folder": (None, ["sweep", "--preset", "cpu-smoke"], "--out is missing"),
    "unknown backend": (
        None,
        ["sweep", "--preset", "cpu-smoke", "--backend", "abacus", "--out", "{out}"],
        "backend 'abacus' is unknown",
    ),
    "unwritable folder": (
        None,
        [
            *("sweep", "--preset", "cpu-smoke", "--backend", "inprocess"),
            *("--out", "/proc/costprof/data"),
        ],
        "/proc/costprof/data cannot be written",
    ),
    "truncated SQLite": (truncated_sqlite, ["ingest", "{input}", "--out", "{out}"], "export"),
    "text named .sqlite": (text_as_sqlite, ["ingest", "{input}", "--out", "{out}"], "export"),
    "a dataset that is not there": (None, ["inspect", "{out}"], "holds no dataset"),
    "fitting nothing": (None, ["fit", "{out}", "--out", "{out}.parquet"], "there is no folder"),
    "a Parquet file that is no table": (other_parquet, ["table", "check", "{input}"], "table"),
    "a text file as a table": (text_as_sqlite, ["table", "show", "{input}"], "export.sqlite"),
    "routing by the table of another GPU": (
        table_of_another_gpu,
        ["route", "{input}"],
        "measured on NVIDIA Imaginary 100",
    ),
    "checking the table of another GPU": (
        table_of_another_gpu,
        ["table", "check", "{input}"],
        "measured on NVIDIA Imaginary 100",
    ),
    "negative tokens to route": (other_parquet, ["route", "{input}", "--tokens", "-2"], "tokens"),
    "routing with another Parquet file": (other_parquet, ["route", "{input}"], "table"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, tmp_path: Path) -> None:
    make, arguments, words = CASES[name]
    made = make(tmp_path) if make else None
    before = sorted(tmp_path.rglob("*"))
    filled = [a.format(input=made, out=tmp_path / "out") for a in arguments]
    done = run_apart(*filled)
    assert done.returncode not in (0, 1), done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("costprof: ")
    assert words in lines[0]
    assert lines[0].count("; ") >= 2
    assert done.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_nsys_asked_for_and_not_there(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    done = run_apart(
        *("sweep", "--preset", "cpu-smoke", "--backend", "nsys", "--out", str(tmp_path / "out")),
        PATH=str(tmp_path / "bin"),
    )
    if "nsys was not found" not in done.stderr:
        pytest.skip("an nsys outside PATH was found")
    assert done.returncode == 3
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
