"""The table on disk: what is refused, what is warned of, what a damaged byte does."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from costprof.core.device import DeviceFingerprint
from costprof.core.errors import DeviceMismatchError, TableError
from costprof.core.work import Work
from costprof.costmodel.compatibility import TableDriftWarning
from costprof.costmodel.manifest import METADATA_KEY, MODEL_KEY, Manifest
from costprof.costmodel.rows import LAYER_FIELDS, TABLE_SCHEMA, TableRow, rows_table
from costprof.costmodel.sealing import rows_hash
from costprof.costmodel.table import CostTable, write_table
from costprof.costmodel.tablefile import read_table

GPU = DeviceFingerprint(kind="gpu", name="NVIDIA H100", driver="550.1", power_limit_w=700.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "t.parquet"


@pytest.fixture
def written(path: Path, rows: list[TableRow], make_manifest: Callable[..., Manifest]) -> Path:
    write_table(path, rows_table(rows), make_manifest())
    return path


def test_a_table_reads_back_as_written(written: Path, rows: list[TableRow]) -> None:
    read = read_table(written)
    assert read.rows.equals(rows_table(rows))
    assert len(read.manifest.content_hash) == 64
    assert (read.model, read.stored_version) == (b"", 2)
    assert CostTable.load(written).moe.name == "four"


def test_any_sql_tool_reads_it(written: Path) -> None:
    import duckdb

    found = duckdb.sql(f"SELECT count(*), max(tokens) FROM '{written}'").fetchone()
    assert found == (16, 32)


def test_the_hash_depends_on_values_not_on_their_encoding(rows: list[TableRow]) -> None:
    table = rows_table(rows)
    chunked = pa.concat_tables([table.slice(0, 5), table.slice(5)])
    assert rows_hash(chunked) == rows_hash(table)
    other = rows_table([dataclasses.replace(rows[0], power_w=None), *rows[1:]])
    assert rows_hash(other) != rows_hash(table)


def test_the_same_rows_give_the_same_hash(
    tmp_path: Path, rows: list[TableRow], make_manifest: Callable[..., Manifest]
) -> None:
    first = write_table(tmp_path / "a.parquet", rows_table(rows), make_manifest())
    again = write_table(tmp_path / "b.parquet", rows_table(rows[::-1]), make_manifest())
    assert first == again


@pytest.mark.parametrize("model", [b"", bytes(range(256)) * 40], ids=["no model", "a model"])
def test_a_damaged_byte_is_refused_or_changes_nothing(
    path: Path, rows: list[TableRow], make_manifest: Callable[..., Manifest], model: bytes
) -> None:
    written = path
    write_table(written, rows_table(rows), make_manifest(), model)
    intact = written.read_bytes()
    whole = read_table(written)
    picked = random.Random(0).sample(range(len(intact)), 300)
    messages = []
    for position in picked:
        damaged = bytearray(intact)
        damaged[position] ^= 0x40
        written.write_bytes(bytes(damaged))
        try:
            read = read_table(written)
        except TableError as error:
            messages.append(str(error))
        else:
            # Bytes that say nothing of the content may differ: padding, the writer's name, and
            # half of Parquet's own description of 37 columns.
            assert read.rows.equals(whole.rows)
            assert (read.manifest, read.model) == (whole.manifest, whole.model)
    assert len(messages) > 0.7 * len(picked)
    assert not any("\n" in message for message in messages)


def test_a_truncated_file_is_refused(written: Path) -> None:
    written.write_bytes(written.read_bytes()[:-100])
    with pytest.raises(TableError, match=r"cannot be read as Parquet .*; no table was loaded"):
        CostTable.load(written)


def test_a_file_of_another_kind_is_refused(path: Path) -> None:
    path.write_text("hello")
    with pytest.raises(TableError, match="cannot be read as Parquet"):
        CostTable.load(path)
    with pytest.raises(TableError, match="there is no file"):
        CostTable.load(path.parent)


def test_a_parquet_file_that_is_no_table_is_refused(path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(TableError, match="without a costprof manifest; it is no cost table"):
        CostTable.load(path)


def rewrite(path: Path, rows: pa.Table, manifest_text: str) -> None:
    pq.write_table(rows.replace_schema_metadata({METADATA_KEY: manifest_text.encode()}), path)


def test_a_model_is_kept_byte_for_byte_and_under_the_hash(
    path: Path, rows: list[TableRow], make_manifest: Callable[..., Manifest]
) -> None:
    model = bytes(range(256)) * 3
    without = write_table(path, rows_table(rows), make_manifest())
    sealed = write_table(path, rows_table(rows), make_manifest(), model)
    assert sealed.content_hash != without.content_hash
    file = read_table(path)
    assert (file.model, file.manifest) == (model, sealed)
    stored = pq.read_schema(path).metadata
    for other in (b"AAAA", b"no base64", b""):
        faked = file.rows.replace_schema_metadata({**stored, MODEL_KEY: other})
        pq.write_table(faked, path)
        with pytest.raises(TableError, match=r"does not match its hash|manifest cannot be read"):
            read_table(path)


def test_the_file_holds_the_model_once_and_as_text(
    path: Path, rows: list[TableRow], make_manifest: Callable[..., Manifest]
) -> None:
    write_table(path, rows_table(rows), make_manifest())
    before = path.stat().st_size
    model = random.Random(0).randbytes(30_000)
    write_table(path, rows_table(rows), make_manifest(), model)
    assert 40_000 <= path.stat().st_size - before < 41_000
    assert pq.read_schema(path).metadata[MODEL_KEY].isascii()


def test_rows_of_layers_read_back(
    path: Path, rows: list[TableRow], make_manifest: Callable[..., Manifest]
) -> None:
    layer = dataclasses.replace(
        rows[0],
        op="layer",
        tier="predicted",
        experts=16,
        top_k=8,
        ep_size=4,
        tp_size=2,
        distribution="power_law_1.2",
        work=Work(1.0, 2.0, 3.0),
    )
    write_table(path, rows_table([*rows, layer]), make_manifest())
    (read,) = (row for row in read_table(path).rows.to_pylist() if row["op"] == "layer")
    named = {name: read[name] for name in LAYER_FIELDS}
    assert tuple(named.values()) == (16, 8, 4, 2, "power_law_1.2")
    assert (read["flops"], read["bytes"], read["tier"]) == (1.0, 5.0, "predicted")


def test_the_hash_covers_the_layer_shape(rows: list[TableRow]) -> None:
    hashes = {
        rows_hash(rows_table([dataclasses.replace(rows[0], **change)]))
        for change in (
            {},
            {"experts": 1},
            {"top_k": 1},
            {"ep_size": 1},
            {"tp_size": 1},
            {"distribution": "1"},
        )
    }
    assert len(hashes) == 6


def test_changed_rows_fail_the_hash(written: Path, rows: list[TableRow]) -> None:
    manifest = read_table(written).manifest
    cheaper = dataclasses.replace(rows[0], latency_us=(1.0, 1.0, 1.0))
    rewrite(written, rows_table([cheaper, *rows[1:]]), manifest.to_json())
    with pytest.raises(TableError, match=r"does not match its hash .*; it was changed or damaged"):
        CostTable.load(written)


def test_a_changed_manifest_fails_the_hash(written: Path) -> None:
    file = read_table(written)
    faked = dataclasses.replace(file.manifest, validation={"latency": {"mape": 0.0}})
    rewrite(written, file.rows, faked.to_json())
    with pytest.raises(TableError, match="does not match its hash"):
        CostTable.load(written)


def test_a_later_schema_version_is_refused(written: Path) -> None:
    file = read_table(written)
    rewrite(written, file.rows, json.dumps({**file.manifest.to_dict(), "schema_version": 99}))
    with pytest.raises(TableError, match=r"version 99, this costprof reads up to 2; it was not lo"):
        CostTable.load(written)


@pytest.mark.parametrize("version", ["0", "-1", "1.5", "true", '"2"', "null"])
def test_a_schema_version_that_is_none_is_refused(written: Path, version: str) -> None:
    rewrite(written, read_table(written).rows, f'{{"schema_version": {version}}}')
    with pytest.raises(TableError, match="manifest cannot be read"):
        CostTable.load(written)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema_version": 2}', "[" * 100_000])
def test_a_manifest_that_is_none_is_refused(written: Path, text: str) -> None:
    rewrite(written, read_table(written).rows, text)
    with pytest.raises(TableError, match=r"manifest cannot be read|does not match its hash"):
        CostTable.load(written)


def test_other_columns_are_refused(
    written: Path, rows: list[TableRow], make_manifest: Callable[..., Manifest]
) -> None:
    file = read_table(written)
    table = file.rows
    rewrite(written, table.drop_columns(["tier"]), file.manifest.to_json())
    with pytest.raises(TableError, match=r"column 'tier' of .*: missing, expected string"):
        CostTable.load(written)
    renamed = table.append_column("extra", pa.array([1] * table.num_rows))
    with pytest.raises(TableError, match="column 'extra' of the rows: int64, expected none"):
        write_table(written, renamed, make_manifest())


def test_writing_no_rows_is_refused(path: Path, make_manifest: Callable[..., Manifest]) -> None:
    with pytest.raises(TableError, match="there are no rows; no table was written"):
        write_table(path, TABLE_SCHEMA.empty_table(), make_manifest())
    assert not path.exists()


def test_a_failed_write_keeps_the_old_table_and_leaves_no_litter(
    written: Path, make_manifest: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = written.read_bytes()
    rows = read_table(written).rows

    def fail(self: pq.ParquetWriter, table: pa.Table) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        write_table(written, rows, make_manifest())
    assert written.read_bytes() == before
    assert list(written.parent.iterdir()) == [written]


def test_another_device_model_is_refused_unless_allowed(
    path: Path, rows: list[TableRow], make_manifest: Callable[..., Manifest]
) -> None:
    write_table(path, rows_table(rows), make_manifest(device=GPU))
    other = dataclasses.replace(GPU, name="NVIDIA H200")
    with pytest.raises(
        DeviceMismatchError, match=r"measured on NVIDIA H100, this machine has NVIDIA H200; its pr"
    ):
        CostTable.load(path, device=other)
    assert CostTable.load(path, device=other, allow_device_mismatch=True).n_experts == 4
    assert CostTable.load(path, device=GPU).n_experts == 4


def test_a_cpu_table_is_compared_with_the_cpu(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from costprof.core import device as device_module

    monkeypatch.setattr(device_module, "_nvidia_gpu", lambda index: GPU)
    assert CostTable.load(written).n_experts == 4


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"driver": "570.0"}, "driver 550.1, now 570.0"),
        ({"power_limit_w": 350.0}, "power limit 700 W, now 350 W"),
        ({"units": 66}, "132 multiprocessors, now 66"),
    ],
)
def test_drift_of_the_device_is_warned_of(
    path: Path,
    rows: list[TableRow],
    make_manifest: Callable[..., Manifest],
    change: dict[str, str | float],
    text: str,
) -> None:
    gpu = dataclasses.replace(GPU, units=132)
    write_table(path, rows_table(rows), make_manifest(device=gpu))
    with pytest.warns(TableDriftWarning, match=text):
        CostTable.load(path, device=dataclasses.replace(gpu, **change))


def test_drift_of_a_library_is_warned_of(
    path: Path, rows: list[TableRow], make_manifest: Callable[..., Manifest]
) -> None:
    write_table(path, rows_table(rows), make_manifest(software={"torch": "1.0"}))
    with pytest.warns(TableDriftWarning, match=r"torch 1\.0, now \d"):
        CostTable.load(path)


def test_the_same_device_warns_of_nothing(written: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CostTable.load(written)


@pytest.mark.parametrize("module", ["table", "manifest", "migrations", "physics"])
def test_serving_modules_import_no_heavy_library(module: str) -> None:
    code = f"import sys, costprof.costmodel.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"duckdb", "pandas", "sklearn", "typer", "rich", "jinja2", "pydantic", "scipy"}
    assert heavy.isdisjoint(done.stdout.split())
