"""`costprof table calibrate`: files of observations, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import Run, runner
from table_rows import GRID, curve

from costprof.core.device import DeviceFingerprint
from costprof.costmodel.manifest import Manifest, MoeSpec
from costprof.costmodel.observation import read_observations
from costprof.costmodel.rows import TABLE_SCHEMA, rows_table
from costprof.costmodel.table import CostTable
from costprof.costmodel.tablefile import read_table, write_table


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a runner of `costprof table calibrate`."""
    return runner(monkeypatch, capfd, "table", "calibrate")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two experts of one class, 10 + n µs; a fitted model of three bytes beside it."""
    rows = curve()
    moe = MoeSpec(name="two", top_k=1, class_of_expert=(rows[0].class_id,) * 2)
    device = DeviceFingerprint(kind="cpu", name="known CPU")
    path = tmp_path / "t.parquet"
    write_table(path, rows_table(rows), Manifest(device=device, moes=(moe,)), b"abc")
    return path


SEEN: list[dict[str, Any]] = [
    {"expert": 0, "tokens": 6, "latency_us": 1.12 * 16.0},
    {"expert": 1, "tokens": 100, "latency_us": 1.12 * 110.0, "energy_mj": 1.12 * 220.0},
    {"counts": [8, 0], "latency_us": 1.12 * 18.0, "temperature_c": 50.0},
    {"counts": [3, 40], "latency_us": 1.12 * 63.0, "power_limit_w": 200.0},
    {"counts": [1, 1], "latency_us": 1.12 * 22.0},
]


def write(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"seen.{kind}"
    if kind == "parquet":
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: [row.get(name) for row in rows] for name in names}
        # As pandas writes integers where some are missing.
        for name in ("expert", "tokens"):
            if None in columns.get(name, []):
                columns[name] = pa.array(columns[name], pa.float64())
        pq.write_table(pa.table(columns), path)
    elif kind == "csv":
        names = list(dict.fromkeys(name for row in rows for name in row))
        lines = [",".join(names)]
        for row in rows:
            texts = [json.dumps(row[name]) if name in row else "" for name in names]
            lines.append(",".join(f'"{text}"' if "," in text else text for text in texts))
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize("kind", ["parquet", "csv", "json"])
def test_five_observations_make_another_table(
    kind: str, table: Path, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "new" / "t2.parquet"
    seen = write(tmp_path, kind, SEEN)
    assert read_observations(seen) == read_observations(write(tmp_path, "json", SEEN))
    code, printed, errors = run(table, "--observations", seen, "--out", out)
    assert (code, errors) == (0, "")
    assert printed.startswith(f"{out}: {len(GRID)} rows\nnote: calibrated from 5 observations")
    before, after = read_table(table), read_table(out)
    assert after.model == b"abc"
    assert after.rows["tier"].equals(before.rows["tier"])
    assert after.rows.schema.equals(TABLE_SCHEMA)
    cost = CostTable(after.rows, after.manifest).cost(0, 16)
    assert cost.latency_us == pytest.approx(1.12 * 26.0, rel=0.01)
    assert 52.0 < cost.energy_mj < 1.12 * 52.0  # one energy is believed in part
    code, printed, _ = run(table, "--observations", seen, "--out", out, "--force", "--json")
    said = json.loads(printed)
    assert (said["out"], said["content_hash"]) == (str(out), after.manifest.content_hash)
    assert said["calibration"]["of"] == before.manifest.content_hash
    assert said["calibration"]["latency"]["observations"] == 5
    assert said["calibration"]["energy_observations"] == 1


GOOD = {"expert": 0, "tokens": 6, "latency_us": 20.0}
BAD: dict[str, tuple[str, Any, str]] = {
    "missing": ("none.csv", None, "there is no file"),
    "kind": ("seen.txt", "x", "is no file of type .parquet, .csv or .json"),
    "empty": ("seen.json", "[]", "has no rows"),
    "no json": ("seen.json", "[{", "cannot be read (Expecting"),
    "deep json": ("seen.json", "[" * 100_000, "cannot be read (maximum recursion"),
    "no rows of json": ("seen.json", '{"latency_us": 3}', "cannot be read (not a list of objects)"),
    "no parquet": ("seen.parquet", "PAR1 no more", "cannot be read ("),
    "no text": ("seen.csv", b"\xff\xfe\x00", "cannot be read ("),
    "long row": ("seen.csv", "latency_us,expert,tokens\n1,2,3,4\n", "column 'more than named'"),
    "word": ("seen.csv", "latency_us,expert,tokens\nfast,2,3\n", "cannot be read (could not conv"),
    "unknown": ("seen.json", [{**GOOD, "latency_ms": 1.0}], "has a column 'latency_ms'"),
    "no latency": ("seen.json", [GOOD, {"expert": 0, "tokens": 1}], "has no latency_us in row 2"),
    "text": ("seen.json", [{**GOOD, "latency_us": "20"}], "row 1 of "),
    "zero": ("seen.json", [GOOD, {**GOOD, "latency_us": 0}], "has latency_us 0, not a positive"),
    "truth": ("seen.json", [{**GOOD, "latency_us": True}], "has latency_us True, not a positive"),
    "true expert": ("seen.json", [{**GOOD, "expert": True}], "not a whole number"),
    "vast count": ("seen.json", [{"counts": [10**30, 0], "latency_us": 1.0}], "more than 1000000"),
    "vast tokens": ("seen.json", [{**GOOD, "tokens": 10**12}], "more than 1000000000"),
    "endless": ("seen.json", [GOOD, {**GOOD, "latency_us": 1e300}], "observation 2 has 1e+300 us"),
    "no energy": ("seen.json", [{**GOOD, "energy_mj": 1e-300}], "observation 1 has 1e-300 mJ"),
    "fire": ("seen.json", [{**GOOD, "temperature_c": 1e300}], "has temperature_c 1e+300"),
    "counts": ("seen.json", [{"counts": 5, "latency_us": 1.0}], "not a whole number"),
    "expert": ("seen.json", [{**GOOD, "expert": 2}], "expert 2 of 2; it cannot be priced"),
    "size": ("seen.json", [{"counts": [1, 2, 3], "latency_us": 1.0}], "do not fit the 2 experts"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_observations_are_one_line(name: str, table: Path, tmp_path: Path, run: Run) -> None:
    file, content, words = BAD[name]
    path, out = tmp_path / file, tmp_path / "t2.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    code, printed, errors = run(table, "--observations", path, "--out", out)
    assert (code, printed) == (2, "")
    assert words in errors
    assert errors.count("\n") == 1
    assert not out.exists()


def test_the_table_is_not_overwritten_and_must_be_one(
    table: Path, tmp_path: Path, run: Run
) -> None:
    seen = write(tmp_path, "json", SEEN)
    code, _, errors = run(table, "--observations", seen, "--out", table)
    assert (code, errors.count("\n")) == (2, 1)
    assert "exists; it was not overwritten" in errors
    out = tmp_path / "t2.parquet"
    code, _, errors = run(seen, "--observations", seen, "--out", out)
    assert (code, errors.count("\n")) == (6, 1)
    code, _, errors = run(table, "--observations", seen, "--out", out, "--moe", "three")
    assert (code, errors.count("\n")) == (6, 1)
    assert not out.exists()
