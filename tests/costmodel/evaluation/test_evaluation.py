"""Splits that hold out what they say, baselines, and the figures of both."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from public_layers import public_table, write_public
from typer.testing import CliRunner

from costprof.cli.main import app
from costprof.core.errors import CostprofError, InputError
from costprof.costmodel.evaluation.baselines import linear_in_tokens
from costprof.costmodel.evaluation.choice import least_energy_choices
from costprof.costmodel.evaluation.figures import figures_of
from costprof.costmodel.evaluation.splits import folds_of
from costprof.costmodel.grouped.points import LayerPoints
from costprof.costmodel.grouped.public import public_points
from costprof.costmodel.report.from_frame import frame_report, read_frame


@pytest.fixture(scope="module")
def points() -> LayerPoints:
    return public_points(public_table())


def test_every_inner_token_count_is_held_out_once_between_its_neighbours(
    points: LayerPoints,
) -> None:
    folds = list(folds_of(points, "token"))
    held = np.sum([fold.test for fold in folds], axis=0)
    counts = np.unique(points.tokens)
    assert (held == ~np.isin(points.tokens, counts[[0, -1]])).all()
    for fold in folds:
        assert (fold.train == ~fold.test).all()
        out = np.unique(points.tokens[fold.test])
        assert np.diff(np.searchsorted(counts, out)).min(initial=2) >= 2


def test_shapes_are_held_out_whole_and_few_shots_are_few(points: LayerPoints) -> None:
    for fold in folds_of(points, "shape"):
        assert not set(points.shape[fold.train]) & set(points.shape[fold.test])
    held = np.zeros(len(points), dtype=int)
    for fold in folds_of(points, "fewshot:3"):
        held += fold.test
        for curve in np.unique(points.curve[fold.test]):
            assert (fold.train & (points.curve == curve)).sum() == 3
    assert held.max() == 1


def test_a_thin_sample_trains_on_its_share(points: LayerPoints) -> None:
    (fold,) = folds_of(points, "sparse:0.1", seed=3)
    assert 0.07 < fold.train.mean() < 0.13


def test_a_fold_that_holds_nothing_out_is_left_aside(points: LayerPoints) -> None:
    small = points.shape == points.shape[0]
    short = points.take(~small | (points.tokens <= 4))
    folds = folds_of(short, "fewshot:3")
    assert len(folds) == len(np.unique(points.shape)) - 1
    assert all(fold.test.any() for fold in folds)


@pytest.mark.parametrize(
    "split",
    [
        *("", "tokens", "sparse", "sparse:2", "sparse:nan", "fewshot:x", "fewshot:0.5"),
        *("fewshot:inf", "fewshot:nan", "fewshot:27", "fewshot:1e9"),
        *("sparse:0.9999999", "sparse:1e-9"),
    ],
)
def test_other_splits_are_refused(points: LayerPoints, split: str) -> None:
    with pytest.raises(InputError, match="cannot be made"):
        list(folds_of(points, split))


def test_the_linear_baseline_is_straight_between_its_points(points: LayerPoints) -> None:
    some = points.take(points.curve == points.curve[0])
    known = some.take(np.isin(some.tokens, (4, 64)))
    told = linear_in_tokens(known, np.array([10.0, 70.0]), some.take(some.tokens == 16))
    assert told.tolist() == [pytest.approx(22.0)]
    alone = known.take(np.array([0]))
    assert np.isnan(linear_in_tokens(alone, np.array([10.0]), some)).all()


def test_figures_compare_all_methods_on_the_same_rows() -> None:
    frame = pa.table(
        {
            "inner": [64, 64, 48],
            "shape": ["a", "b", "c"],
            "tokens": [1, 1, 1],
            "distribution": ["balanced"] * 3,
            "ep_size": [1, 1, 1],
            "tp_size": [1, 1, 1],
            "latency_us": [100.0, 400.0, 100.0],
            "latency_us_p05": [80.0, 390.0, 80.0],
            "latency_us_p50": [110.0, 400.0, 90.0],
            "latency_us_p95": [120.0, 410.0, 95.0],
            "linear_us": [100.0, 200.0, None],
            "roofline_us": [50.0, 200.0, 50.0],
            "boosting_us": [100.0, 400.0, 100.0],
            "analytic_us": [100.0, 400.0, 100.0],
            "energy_mj": [None, 200.0, None],
            "energy_mj_p05": [1.0, 100.0, 1.0],
            "energy_mj_p50": [1.0, 220.0, 1.0],
            "energy_mj_p95": [1.0, 300.0, 1.0],
            "linear_mj": [1.0, 210.0, 1.0],
            "constant_tdp_mj": [1.0, 280.0, 1.0],
            "power_capped": [False, False, False],
        }
    )
    figures = figures_of(frame)
    ours, linear = (figures["latency"]["all"][name] for name in ("costprof", "linear in tokens"))
    assert ours["layers"] == linear["layers"] == 2
    assert ours["mape"] == pytest.approx(5.0)
    assert linear["mape"] == pytest.approx(25.0)
    assert ours["coverage_90"] == 100.0
    odd = figures["latency"]["inner no multiple of 64"]
    assert "linear in tokens" not in odd
    assert odd["costprof"]["coverage_90"] == 0.0
    energy = figures["energy"]["at least 0.34 ms, not capped"]
    assert energy["costprof"]["mape"] == pytest.approx(10.0)
    assert energy["constant TDP x true latency"]["mape"] == pytest.approx(40.0)


def test_a_choice_agrees_where_it_costs_next_to_nothing_more() -> None:
    frame = pa.table(
        {
            "shape": ["a", "a", "b", "b", "c"],
            "tokens": [1, 1, 1, 1, 1],
            "distribution": ["balanced"] * 5,
            "ep_size": [1, 2, 1, 1, 1],
            "tp_size": [1, 1, 1, 1, 1],
            "energy_mj": [10.0, 6.0, 10.0, 10.2, 1.0],
            "energy_mj_p50": [11.0, 5.0, 10.0, 9.0, 1.0],
        }
    )
    choices = least_energy_choices(frame)
    assert choices is not None
    assert choices["choices"] == 2
    # Two ranks of 6 mJ are more than one of 10: wrong by 20 %; the other choice is a tie.
    assert choices["agreement"] == 50.0
    assert choices["mean_extra_energy"] == pytest.approx(100 * (0.2 + 0.02) / 2)
    assert least_energy_choices(frame.slice(4)) is None
    told = pa.array([11.0, None, 10.0, 9.0, 1.0])  # without a prediction there is no choice
    partly = least_energy_choices(frame.set_column(6, "energy_mj_p50", told))
    assert partly is not None
    assert partly["choices"] == 1


def test_the_command_says_how_well_new_shapes_are_predicted(tmp_path: Path) -> None:
    runner, dataset = CliRunner(), tmp_path / "dataset"
    source = write_public(tmp_path / "layers.parquet")
    arguments = ["ingest", "--format", "aiconfigurator", str(source), "--out", str(dataset)]
    assert runner.invoke(app, arguments).exit_code == 0
    frame = tmp_path / "frame.parquet"
    done = runner.invoke(
        app, ["evaluate", str(dataset), "--split", "sparse:0.5", "--out", str(frame), "--json"]
    )
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    ours = figures["latency"]["all"]
    assert ours["costprof"]["mape"] < 0.5 * ours["roofline x boosting"]["mape"]
    assert pq.read_table(frame).num_rows == figures["layers"]
    report = frame_report(read_frame(frame), "frame")
    assert (report.title, report.facts[0]) == ("dataset", ("Device", "NVIDIA H200"))
    errors = next(each for each in report.sections[0].figures if each.name == "errors")
    found = {row[:2]: row[3] for row in errors.numbers.rows}
    assert found["latency, all", "costprof"] == ours["costprof"]["mape"]
    shown = runner.invoke(app, ["evaluate", str(dataset), "--split", "sparse:0.5"])
    assert "roofline x boosting" in shown.output
    twice = runner.invoke(app, ["evaluate", str(dataset), "--out", str(frame)])
    assert isinstance(twice.exception, InputError)
    assert "exists" in str(twice.exception)
    folder = runner.invoke(app, ["evaluate", str(dataset), "--out", str(tmp_path), "--force"])
    assert "is a folder; nothing was evaluated" in str(folder.exception)
    file = runner.invoke(app, ["evaluate", str(source)])
    assert f"aiconfigurator {source}" in str(file.exception)
    bad = runner.invoke(app, ["evaluate", str(dataset), "--split", "odd"])
    assert isinstance(bad.exception, CostprofError)
    none = runner.invoke(app, ["evaluate", str(tmp_path / "nothing")])
    assert isinstance(none.exception, CostprofError)
