"""Whose rows a merged table holds, and what its manifest says where the tables disagree."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from table_rows import GRID, curve, row, tables

from costprof.core.device import DeviceFingerprint
from costprof.core.errors import DeviceMismatchError, InputError
from costprof.costmodel.manifest import (
    Composition,
    Manifest,
    MoeSpec,
    SourceDataset,
    TiledLayer,
)
from costprof.costmodel.rows import KEY_FIELDS, TIERS, TableRow, rows_table
from costprof.costmodel.table import CostTable
from costprof.costmodel.table_merge import merge_tables
from costprof.costmodel.tablefile import TableFile, read_table, write_table

DEVICE = DeviceFingerprint(kind="cpu", name="known CPU", driver="5")
VERSION_1 = Path(__file__).parent / "tables" / "version-1.parquet"


def table(rows: list[TableRow], name: str = "a", model: bytes = b"", **other: Any) -> TableFile:
    values: dict[str, Any] = {
        "device": DEVICE,
        "moes": (),
        "sources": (SourceDataset(name=name, content_hash=name * 4),),
        "content_hash": name * 64,
    }
    return TableFile(rows_table(rows), Manifest(**{**values, **other}), model)


def notes(*files: TableFile) -> str:
    return "\n".join(merge_tables(list(files)).file.manifest.notes)


def test_rows_of_both_are_kept_and_the_measured_one_wins() -> None:
    first = [row(1, 10.0), row(2, 11.0, tier="interpolated"), row(4, 12.0)]
    second = [row(2, 21.0), row(4, 22.0), row(8, 23.0, tier="extrapolated")]
    merged = merge_tables([table(first), table(second, "b")])
    columns = (merged.file.rows[name].to_pylist() for name in ("tokens", "latency_us_p50"))
    prices = dict(zip(*columns, strict=True))
    assert prices == {1: 10.0, 2: 21.0, 4: 12.0, 8: 23.0}
    assert merged.rows_taken == (2, 2)


def test_of_equal_tiers_a_metered_energy_wins_then_the_first_table() -> None:
    modelled = table([row(1, 10.0)])
    metered = table([row(1, 20.0, energy_source="nvml_counter")], "b")
    for files in ([modelled, metered], [metered, modelled]):
        assert merge_tables(files).file.rows["latency_us_p50"].to_pylist() == [20.0]
    assert merge_tables([table([row(1, 1.0)]), modelled]).rows_taken == (1, 0)


def test_layers_of_other_shapes_are_other_rows() -> None:
    layer = {"op": "layer", "top_k": 2, "ep_size": 1, "tp_size": 1, "distribution": "balanced"}
    files = [table([row(1, 1.0, experts=n, **layer)]) for n in (8, 16)]
    assert merge_tables(files).file.rows["experts"].to_pylist() == [8, 16]


def test_another_device_model_is_refused() -> None:
    other = dataclasses.replace(DEVICE, name="other CPU")
    with pytest.raises(DeviceMismatchError, match="known CPU, another on other CPU; their prices"):
        merge_tables([table(curve()), table(curve(), device=other)])
    with pytest.raises(InputError, match="no tables were given"):
        merge_tables([])


def test_what_was_measured_under_other_conditions_is_noted() -> None:
    newer = dataclasses.replace(DEVICE, driver="6")
    said = notes(
        table(curve(), software={"torch": "2.13", "triton": ""}),
        table(curve(), "b", device=newer, software={"torch": "2.14", "triton": "3.5"}),
    )
    assert "b (bbbbbbbb) was measured under driver 6, a (aaaaaaaa) under 5" in said
    assert "b (bbbbbbbb) was measured under torch 2.14, a (aaaaaaaa) under 2.13" in said
    assert "triton" not in said


def test_moes_and_sources_are_of_both_and_conflicts_are_named() -> None:
    one, two = (MoeSpec(name=name, top_k=1, class_of_expert=("x",)) for name in ("one", "two"))
    other = dataclasses.replace(one, class_of_expert=("y",))
    files = [table(curve(), moes=(one,)), table(curve(), "b", moes=(other, two))]
    manifest = merge_tables(files).file.manifest
    assert manifest.moes == (one, two)
    assert [source.name for source in manifest.sources] == ["a", "b"]
    assert (
        "the MoE one has other experts in b (bbbbbbbb): those of a (aaaaaaaa) are kept"
        in manifest.notes
    )


def test_the_composition_of_most_layers_wins_and_the_conflict_is_named() -> None:
    class_id = row(1, 1.0).class_id
    few = Composition(base_us=1.0, fitted=True, layers=3)
    many = Composition(base_us=2.0, fitted=True, layers=9)
    first = table(curve(), compositions={class_id: few})
    second = table([*curve(d_ff=256), row(999, 99.0)], "b", compositions={class_id: many, "z": few})
    manifest = merge_tables([first, second]).file.manifest
    assert manifest.compositions == {class_id: many, "z": few}
    said = "\n".join(manifest.notes)
    assert f"class {class_id[:6]} composes otherwise in a (aaaaaaaa): b (bbbbbbbb), with" in said
    assert f"class {class_id[:6]}: its layers compose as fitted to the rows of b (bbbbbbbb)" in said
    assert merge_tables([second, first]).file.manifest.compositions[class_id] == many
    alone = table(curve(d_ff=256), "b")
    assert merge_tables([first, alone]).file.manifest.notes == ()


def test_the_first_model_and_parameters_are_kept_and_noted() -> None:
    first = table(curve(), parameters={"a": 1})
    second = table(curve(), "b", b"model", parameters={"a": 2})
    merged = merge_tables([first, second]).file
    assert (merged.model, merged.manifest.parameters) == (b"model", {"a": 1})
    said = "\n".join(merged.manifest.notes)
    assert "the fitted parameters are those of a (aaaaaaaa), fitted without the rows of" in said
    assert "the model is that of b (bbbbbbbb), fitted without the rows of the other" in said
    assert notes(second, second) == ""


def test_errors_of_the_merged_stand_apart() -> None:
    first = table(curve(), validation={"latency": {"mape": 1.0}})
    second = table(curve(), "b", validation={"latency": {"mape": 2.0}})
    merged = merge_tables([first, second]).file
    apart = {"a" * 64: first.manifest.validation, "b" * 64: second.manifest.validation}
    assert merged.manifest.validation == {"of_merged_tables": apart}
    third = table(curve(), "c", validation={"latency": {"mape": 3.0}})
    again = merge_tables([merged, third]).file.manifest.validation["of_merged_tables"]
    assert again == {**apart, "c" * 64: third.manifest.validation}


def test_layers_under_most_configs_are_kept() -> None:
    layer = TiledLayer(
        class_fields={"d_model": 1},
        kernel="k:l",
        cache_state="cold",
        experts=4,
        top_k=1,
        distribution="balanced",
        tokens=8,
        configs=(({"BLOCK_M": 16}, 1.0),),
        tried=2,
    )
    more = dataclasses.replace(layer, configs=(({"BLOCK_M": 32}, 2.0),), tried=5)
    other = dataclasses.replace(layer, tokens=16)
    files = [table(curve(), tiled_layers=(layer,)), table(curve(), "b", tiled_layers=(more, other))]
    assert merge_tables(files).file.manifest.tiled_layers == (more, other)
    assert "those of the most configs are kept" in notes(*files)


def test_a_merged_table_reads_back_and_prices(tmp_path: Path) -> None:
    moes = (MoeSpec(name="m", top_k=1, class_of_expert=(row(1, 1.0).class_id,) * 2),)
    files = [table(curve()[:4], moes=moes), table(curve()[4:], "b", moes=moes)]
    merged = merge_tables(files).file
    path = tmp_path / "t.parquet"
    write_table(path, merged.rows, merged.manifest, merged.model)
    priced = CostTable.load(path, device=DEVICE, allow_device_mismatch=True)
    assert [priced.cost(0, n).latency_us for n in GRID] == [10.0 + n for n in GRID]


def test_a_real_table_merged_with_itself_is_itself() -> None:
    file = read_table(VERSION_1)
    merged = merge_tables([file, file]).file
    assert merged.rows.equals(file.rows)
    assert dataclasses.replace(merged.manifest, content_hash="") == dataclasses.replace(
        file.manifest, content_hash=""
    )


def keyed(rows: pa.Table) -> dict[tuple[object, ...], dict[str, object]]:
    return {tuple(values[name] for name in KEY_FIELDS): values for values in rows.to_pylist()}


@given(tables())
@settings(deadline=None, max_examples=50)
def test_merged_with_itself_rows_stay(rows: list[TableRow]) -> None:
    file = table(rows)
    merged = merge_tables([file, file])
    assert merged.file.rows.equals(file.rows)
    assert merged.rows_taken == (len(rows), 0)


@given(tables(), tables())
@settings(deadline=None, max_examples=50)
def test_every_row_is_the_better_of_both(first: list[TableRow], second: list[TableRow]) -> None:
    one, other = keyed(rows_table(first)), keyed(rows_table(second))
    merged = merge_tables([table(first), table(second, "b")])
    found = keyed(merged.file.rows)
    assert found.keys() == one.keys() | other.keys()
    assert sum(merged.rows_taken) == merged.file.rows.num_rows == len(found)
    for key, values in found.items():
        offered = [side[key] for side in (one, other) if key in side]
        assert values in offered
        assert TIERS.index(values["tier"]) == min(TIERS.index(each["tier"]) for each in offered)


@given(tables(), tables(), tables())
@settings(deadline=None, max_examples=30)
def test_the_order_of_merging_changes_nothing(
    first: list[TableRow], second: list[TableRow], third: list[TableRow]
) -> None:
    files = [table(first), table(second, "b"), table(third, "c")]
    at_once = merge_tables(files).file.rows
    left = merge_tables([merge_tables(files[:2]).file, files[2]]).file.rows
    right = merge_tables([files[0], merge_tables(files[1:]).file]).file.rows
    assert left.equals(at_once)
    assert right.equals(at_once)
