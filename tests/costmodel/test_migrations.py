"""Tables that version 1 wrote: two files of its own code, never to be written anew."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from costprof.core.errors import TableError
from costprof.costmodel.manifest import METADATA_KEY
from costprof.costmodel.migrations import schema_of
from costprof.costmodel.rows import LAYER_FIELDS, TABLE_SCHEMA
from costprof.costmodel.table import CostTable
from costprof.costmodel.tablefile import read_table, write_table

TABLES = Path(__file__).parent / "tables"
VERSION_1 = TABLES / "version-1.parquet"
VERSION_1_EXPERTS = TABLES / "version-1-experts.parquet"  # its manifest has no tiled layers


def stored(path: Path) -> dict[str, object]:
    values: dict[str, object] = json.loads(pq.read_schema(path).metadata[METADATA_KEY])
    return values


@pytest.mark.parametrize("path", [VERSION_1, VERSION_1_EXPERTS], ids=lambda path: path.stem)
def test_a_table_of_version_1_is_brought_forward(path: Path) -> None:
    assert pq.read_schema(path).names == schema_of(1).names
    file = read_table(path)
    assert (file.stored_version, file.manifest.schema_version, file.model) == (1, 2, b"")
    assert file.rows.schema == TABLE_SCHEMA
    for name in LAYER_FIELDS:
        assert file.rows[name].null_count == file.rows.num_rows
    before = pq.read_table(path).select(schema_of(1).names).to_pylist()
    assert file.rows.select(schema_of(1).names).to_pylist() == before
    assert dict(before[0]["counters"]) == {"dram_bytes": 1.5e6}


def test_what_its_manifest_says_is_kept() -> None:
    manifest, before = read_table(VERSION_1).manifest, stored(VERSION_1)
    now = manifest.to_dict()
    changed = {name for name in now if now[name] != before.get(name)}
    assert changed == {"schema_version", "content_hash"}
    assert [layer.tokens for layer in manifest.tiled_layers] == [4, 8, 16]
    assert "tiled_layers" not in stored(VERSION_1_EXPERTS)
    assert read_table(VERSION_1_EXPERTS).manifest.tiled_layers == ()


def test_its_hash_is_that_of_writing_it_again(tmp_path: Path) -> None:
    file = read_table(VERSION_1)
    sealed = write_table(tmp_path / "t.parquet", file.rows, file.manifest, file.model)
    assert sealed == file.manifest
    again = read_table(tmp_path / "t.parquet")
    assert again.stored_version == 2
    assert again.rows.equals(file.rows)


@pytest.mark.filterwarnings("ignore::costprof.costmodel.compatibility.TableDriftWarning")
def test_it_prices() -> None:
    table = CostTable.load(VERSION_1, device=read_table(VERSION_1).manifest.device)
    assert table.cost(0, 4).tier == "measured"
    assert table.cost(0, 4).latency_us > 0


@pytest.mark.parametrize("what", ["manifest", "rows", "hash"])
def test_its_hash_is_verified_by_the_rule_of_its_version(what: str, tmp_path: Path) -> None:
    rows, values = pq.read_table(VERSION_1), stored(VERSION_1)
    if what == "manifest":
        values["notes"] = ["faster than it was"]
    elif what == "hash":
        values["content_hash"] = read_table(VERSION_1).manifest.content_hash
    else:
        at = rows.schema.get_field_index("power_w")
        rows = rows.set_column(at, "power_w", rows["power_peak_w"])
    path = tmp_path / "t.parquet"
    pq.write_table(rows.replace_schema_metadata({METADATA_KEY: json.dumps(values).encode()}), path)
    with pytest.raises(TableError, match="does not match its hash"):
        read_table(path)


def test_columns_of_version_2_in_a_table_of_version_1_are_refused(tmp_path: Path) -> None:
    file = read_table(VERSION_1)
    path = tmp_path / "t.parquet"
    text = json.dumps(stored(VERSION_1)).encode()
    pq.write_table(file.rows.replace_schema_metadata({METADATA_KEY: text}), path)
    with pytest.raises(TableError, match=r"column 'experts' of .*: int64, expected none; it is no"):
        read_table(path)
