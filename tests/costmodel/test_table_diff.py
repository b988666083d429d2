"""What a diff calls worse, what it leaves alone, and that both directions agree."""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table_rows import GRID, KERNEL, curve, row, tables

from costprof.core.errors import InputError, TableError
from costprof.costmodel.rows import TableRow, rows_table
from costprof.costmodel.significance import LEAST_STD, discoveries, log_std
from costprof.costmodel.table_diff import TableDiff, Verdict, diff_tables


def compare(before: list[TableRow], after: list[TableRow], threshold: float = 0.05) -> TableDiff:
    return diff_tables(rows_table(before), rows_table(after), threshold)


def test_a_slower_curve_is_worse_and_the_rest_is_not() -> None:
    found = compare(curve() + curve(d_ff=256), curve(1.2) + curve(d_ff=256))
    assert found.is_worse
    verdicts = {each.fields["d_ff"]: each.whole["latency_us"].verdict for each in found.curves}
    assert verdicts == {128: "worse", 256: "same"}
    slower = next(each for each in found.curves if each.fields["d_ff"] == 128)
    assert slower.whole["latency_us"].ratio == pytest.approx(1.2)
    assert {change.verdict for change in slower.by_tokens["latency_us"].values()} == {"worse"}
    assert slower.found("energy_mj", "worse")


def test_one_slow_token_count_is_found_alone() -> None:
    after = curve()
    after[5] = row(32, 42.0 * 1.5)
    (found,) = compare(curve(), after, threshold=0.1).curves
    assert found.whole["latency_us"].verdict == "same"
    worse = [n for n, each in found.by_tokens["latency_us"].items() if each.verdict == "worse"]
    assert worse == [32]


def test_changes_within_the_threshold_or_the_doubt_are_left_alone() -> None:
    assert not compare(curve(), curve(1.04)).is_worse
    assert compare(curve(), curve(1.04), threshold=0.03).is_worse
    assert not compare(curve(spread=0.5), curve(1.1, spread=0.5)).is_worse


def test_small_shifts_of_many_measured_rows_add_up_but_not_of_modelled_ones() -> None:
    # One row alone: 0.1 / hypot(0.12, 0.12) = 0.6 standard deviations.
    grid = range(1, 101)
    before = [row(n, 10.0, spread=0.2) for n in grid]
    after = [row(n, 11.0, spread=0.2) for n in grid]
    (found,) = compare(before, after).curves
    assert found.whole["latency_us"].verdict == "worse"
    assert {each.verdict for each in found.by_tokens["latency_us"].values()} == {"same"}
    modelled = [dataclasses.replace(each, tier="predicted") for each in after]
    assert not compare(before, modelled).is_worse


def test_modelled_rows_decide_nothing_where_there_are_measured_ones() -> None:
    before = [*curve(), row(256, 266.0, tier="extrapolated", spread=0.01)]
    after = [*curve(), row(256, 532.0, tier="extrapolated", spread=0.01)]
    found = compare(before, after)
    assert not found.is_worse
    change = found.curves[0].by_tokens["latency_us"][256]
    assert (change.ratio, change.p_value) == (pytest.approx(2.0), None)
    alone = compare(before[-1:], after[-1:])
    assert alone.is_worse


def test_a_changed_kernel_source_or_framework_version_is_compared() -> None:
    newer = dataclasses.replace(KERNEL, source_hash="bb", framework="torch 2.14.0")
    found = compare(curve(), curve(1.3, kernel=newer))
    assert found.is_worse
    assert (found.only_before, found.only_after) == ((), ())
    other = dataclasses.replace(KERNEL, name="kernels:other")
    with pytest.raises(TableError, match="have no rows in common; they cannot be compared"):
        compare(curve(), curve(kernel=other))


def test_versions_that_cannot_be_told_apart_are_not_paired() -> None:
    second = dataclasses.replace(KERNEL, source_hash="bb")
    third = dataclasses.replace(KERNEL, source_hash="cc")
    found = compare(curve() + curve(kernel=second), curve(kernel=second) + curve(kernel=third))
    assert [each.fields["kernel_source_hash"] for each in found.curves] == ["bb"]
    assert [fields["kernel_source_hash"] for fields, _ in found.only_before] == ["aa"]
    assert [fields["kernel_source_hash"] for fields, _ in found.only_after] == ["cc"]


def test_rows_of_one_table_alone_are_named() -> None:
    found = compare([*curve(), *curve(d_ff=256)], [*curve()[2:], *curve(d_ff=512)])
    assert [(fields["d_ff"], count) for fields, count in found.only_before] == [(256, 8)]
    assert [(fields["d_ff"], count) for fields, count in found.only_after] == [(512, 8)]
    assert found.curves[0].tokens_only_before == (1, 2)
    assert found.curves[0].tokens_only_after == ()


def test_layers_of_other_shapes_are_other_curves() -> None:
    layer = {"op": "layer", "top_k": 2, "ep_size": 1, "tp_size": 1, "distribution": "balanced"}
    before = curve(experts=8, **layer) + curve(experts=16, **layer)
    after = curve(experts=8, **layer) + curve(1.5, experts=16, **layer)
    worse = [each for each in compare(before, after).curves if each.found("latency_us", "worse")]
    assert [each.fields["experts"] for each in worse] == [16]


def test_energies_of_two_sources_are_not_compared() -> None:
    hungrier = [
        dataclasses.replace(
            each, energy_mj=tuple(3 * value for value in each.energy_mj), energy_source=source
        )
        for each in curve()
        for source in ("nvml_counter",)
    ]
    found = compare(curve(), hungrier)
    assert not found.is_worse
    assert found.curves[0].whole.keys() == {"latency_us"}
    metered = [dataclasses.replace(each, energy_source="nvml_counter") for each in curve()]
    worse = compare(metered, hungrier)
    assert worse.is_worse
    assert worse.curves[0].whole["latency_us"].verdict == "same"


def test_rows_that_cannot_be_compared() -> None:
    nothing = float("nan")
    empty = [
        dataclasses.replace(each, latency_us=(nothing,) * 3, energy_mj=(nothing,) * 3)
        for each in curve()
    ]
    with pytest.raises(TableError, match="have no medians with intervals"):
        compare(curve(), empty)
    with pytest.raises(TableError, match=r"prices class .* at 1 tokens twice"):
        compare(curve(), [*curve(), row(1, 9.0)])
    for threshold in (-0.1, nothing, math.inf):
        with pytest.raises(InputError, match="the threshold is"):
            compare(curve(), curve(), threshold)


def test_chance_alone_is_rarely_called_a_change() -> None:
    # 40 tables without any change, 64 rows each, threshold 0: false alarms stay near the rate.
    noise = random.Random(0)
    spread = 1.6448536 * 0.05
    alarms = 0
    for _ in range(40):
        tables = [
            [
                row(n, 10.0 * math.exp(noise.gauss(0, 0.05)), d_ff=64 * (1 + k), spread=spread)
                for k in range(8)
                for n in GRID
            ]
            for _ in range(2)
        ]
        alarms += compare(tables[0], tables[1], 0.0).is_worse
    assert alarms <= 8


def test_intervals_without_meaning_give_no_doubt_and_narrow_ones_the_least() -> None:
    p05 = np.array([0.9, 1.0, 0.0, 1.1, -1.0, np.nan, 1.0])
    p50 = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    p95 = np.array([1.2, 1.0, 1.2, 1.2, 1.2, 1.2, np.inf])
    std = log_std(p05, p50, p95)
    assert std[0] == pytest.approx(math.log(1.2 / 0.9) / 3.28971)
    assert std[1] == LEAST_STD
    assert std[2] == pytest.approx(math.log(1.2) / 1.64485, rel=1e-4)
    assert np.isnan(std[3:]).all()


def test_discoveries_step_up() -> None:
    # All fall if the largest is at or below the rate, though none but it meets its own rank's.
    assert discoveries(np.array([0.05, 0.05, 0.05]), 0.05).all()
    assert not discoveries(np.array([]), 0.05).any()
    assert not discoveries(np.array([np.nan]), 0.05).any()


@given(tables(), st.floats(0.0, 1.0))
@settings(deadline=None, max_examples=60)
def test_a_table_against_itself_is_clean(rows: list[TableRow], threshold: float) -> None:
    found = compare(rows, rows, threshold)
    assert (found.only_before, found.only_after) == ((), ())
    for each in found.curves:
        assert (each.tokens_only_before, each.tokens_only_after) == ((), ())
        for changes in each.by_tokens.values():
            assert {change.verdict for change in changes.values()} == {"same"}
        assert {change.verdict for change in each.whole.values()} == {"same"}
    assert not found.is_worse


MIRRORED: dict[Verdict, Verdict] = {"worse": "better", "better": "worse", "same": "same"}


@given(tables(), tables(), st.floats(0.0, 0.5))
@settings(deadline=None, max_examples=100)
def test_both_directions_agree(
    before: list[TableRow], after: list[TableRow], threshold: float
) -> None:
    try:
        there = compare(before, after, threshold)
    except TableError:
        with pytest.raises(TableError):
            compare(after, before, threshold)
        return
    back = {each.fields["class_id"]: each for each in compare(after, before, threshold).curves}
    assert len(back) == len(there.curves)
    for each in there.curves:
        other = back[each.fields_after["class_id"]]
        assert other.fields_after == each.fields
        assert other.tokens_only_after == each.tokens_only_before
        assert other.whole.keys() == each.whole.keys()
        for name, changes in each.by_tokens.items():
            pairs = [(changes[n], other.by_tokens[name][n]) for n in changes]
            for change, mirrored in [*pairs, (each.whole[name], other.whole[name])]:
                assert change.ratio * mirrored.ratio == pytest.approx(1.0)
                # At the threshold itself, rounding may fall on either side.
                if abs(abs(math.log(change.ratio)) - math.log1p(threshold)) > 1e-9:
                    assert mirrored.verdict == MIRRORED[change.verdict]
