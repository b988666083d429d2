"""A report of whole layers: planted errors come back as the figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from costprof.core.errors import DatasetError, InputError
from costprof.core.expert import ExpertClass, Kernel, class_id
from costprof.costmodel.report.accuracy import accuracy_figures
from costprof.costmodel.report.build import make_report
from costprof.costmodel.report.figure import Figure, Numbers, Report
from costprof.costmodel.report.joules import energy_figures
from costprof.costmodel.report.layers import layer_calls, layers_held_out
from costprof.costmodel.report.page import render_page
from costprof.costmodel.report.series import MOST_DRAWN
from costprof.costmodel.report.speed import surface_by_active
from costprof.profiler.dataset import write_measurements


def by_first(numbers: Numbers) -> dict[Any, tuple[Any, ...]]:
    return {row[0]: row[1:] for row in numbers.rows}


def figures_of(made: list[Figure]) -> dict[str, Figure]:
    return {figure.name: figure for figure in made}


@pytest.fixture(scope="module")
def frame(layer_frame: Callable[..., pa.Table]) -> pa.Table:
    return layer_frame()


@pytest.fixture(scope="module")
def accuracy(frame: pa.Table) -> dict[str, Figure]:
    return figures_of(accuracy_figures(layers_held_out(frame)))


def test_errors_are_those_planted(accuracy: dict[str, Figure], frame: pa.Table) -> None:
    found = {row[:2]: row[2:] for row in accuracy["errors"].numbers.rows}
    # The linear rule cannot tell the largest of six counts: all are judged on the others.
    n = frame.num_rows * 5 // 6
    assert found["latency, all", "costprof"] == (n, *[pytest.approx(10.0)] * 3, 100.0)
    assert found["latency, all", "linear in tokens"][:2] == (n, pytest.approx(30.0))
    assert found["latency, all", "analytic alone"][1] == pytest.approx(50.0)
    assert found["energy, all", "costprof"][1] == pytest.approx(5.0)
    tdp = "constant TDP x true latency"
    assert found["energy, at least 0.34 ms, power-capped", tdp][1] == pytest.approx(0.0)
    assert ("energy, all", "linear in tokens") not in found


def test_choices_of_least_energy_agree_where_all_are_off_by_one_factor(
    accuracy: dict[str, Figure],
) -> None:
    # Two shapes, two routings, six token counts; six ways of each.
    assert accuracy["least-energy"].numbers.rows == [(24, 100.0, 0.0)]


def test_residuals_and_errors_by_tokens(accuracy: dict[str, Figure]) -> None:
    residuals = accuracy["residuals"].numbers.rows
    assert [row[0] for row in residuals] == ["1", "4", "16", "64", "256", "1024"]
    assert [row[3] for row in residuals] == pytest.approx([1.1] * 6)
    by_tokens = by_first(accuracy["error-by-tokens"].numbers)
    assert by_tokens["64"][1:] == pytest.approx((10.0, 30.0, 20.0, 50.0, 50.0))
    assert by_tokens["1024"][2] is None


def test_calibration_is_of_the_half_width_planted(accuracy: dict[str, Figure]) -> None:
    # ln 1.1 = 0.0953 is 47.7 % of the 90 % half width 0.2, which is 0.784 standard deviations:
    # inside from the level 56.7 % on.
    observed = dict(accuracy["calibration"].numbers.rows)
    assert observed == {50.0: 0.0, 60.0: 100.0, 70.0: 100.0, 80.0: 100.0, 90.0: 100.0, 95.0: 100.0}
    width = by_first(accuracy["coverage-by-tokens"].numbers)["16"]
    assert width[1:] == (100.0, pytest.approx(100 * (np.exp(0.2) - np.exp(-0.2))))


def test_calls_know_active_experts_and_trust(frame: pa.Table) -> None:
    calls = layer_calls(frame)
    balanced = calls.take(calls.even & (calls.shape == "2048×768, top 8 of 128"))
    assert sorted(set(balanced.active)) == [8, 32, 128]
    assert np.isnan(calls.energy_mj[calls.tokens == 1]).all()
    assert np.isfinite(calls.energy_mj[calls.tokens > 1]).all()
    assert set(calls.series) == {"bfloat16", "fp8"}
    figure = surface_by_active(calls)
    assert figure is not None
    assert by_first(figure.numbers)["8 active"][1] is None  # four tokens wake more


def test_energy_of_choices_is_that_of_all_ranks(frame: pa.Table) -> None:
    calls = layer_calls(frame)
    figures = figures_of(energy_figures(calls, 700.0, "measured"))
    front = figures["pareto"].numbers.rows
    # Power is the same for all shards, so more ranks are faster and cost more: fronts have both.
    assert all("EP 1" in row[1] for row in front)
    latencies, joules = [row[2] for row in front], [row[3] for row in front]
    assert latencies == sorted(latencies)
    assert joules == sorted(joules, reverse=True)
    fastest = min(calls.latency_us[np.isfinite(calls.energy_mj) & calls.even])
    assert latencies[0] == pytest.approx(fastest)
    watts = by_first(figures["energy-latency"].numbers)["fp8"]
    assert watts[1:] == (pytest.approx(350.0), pytest.approx(350.0), pytest.approx(700.0))


def layer_dataset(folder: Path, rows: int = 250, **other: Any) -> Path:
    """Write layers of named routing as ingest leaves them; what they measured is in the frame."""
    expert = ExpertClass(d_model=2048, d_ff=768)
    kernel = Kernel(name="vllm:fused_moe", framework="vllm 0.22.0")
    row = {
        **expert.to_dict(),
        "class_id": class_id(expert, "layer", kernel, "warm"),
        "op": "layer",
        "kernel": kernel.name,
        "framework": kernel.framework,
        "config": "{}",
        "cache_state": "warm",
        "experts": 128,
        "top_k": 8,
        "ep_size": 1,
        "tp_size": 1,
        "distribution": "balanced",
        "status": "ok",
        "latency_us_p50": 100.0,
        "energy_source": "power_samples",
        "energy_trusted": True,
        "backend": "aiconfigurator",
        "timer": "cuda_graph",
        "device_kind": "gpu",
        "device_name": "NVIDIA H200",
        "power_limit_w": 700.0,
    }
    write_measurements(folder, "run", [{**row, "tokens": n + 1, **other} for n in range(rows)])
    return folder


def report_of(folder: Path, frame: pa.Table, split: str = "token") -> Report:
    return make_report(folder, split, held_out=lambda *_, **__: frame)


def test_the_page_of_layers(tmp_path: Path, frame: pa.Table, read_page: Any) -> None:
    asked = []

    def held_out(folder: Path, split: str, **progress: Any) -> pa.Table:
        asked.append((folder, split))
        return frame

    folder = layer_dataset(tmp_path / "h200")
    report = make_report(folder, "shape", held_out=held_out)
    assert asked == [(folder, "shape")]
    text = render_page(report)
    page = read_page(text)
    assert "NVIDIA H200" in page.said("dd")
    assert "250 used, 0 of them noisy; 0 failed or unusable" in page.said("dd")
    assert any("mean power of samples" in line for line in page.said("li"))
    for title in ("Roofline", "Calibration", "What predicts power on NVIDIA H200"):
        assert title in page.said("h3")
    assert "What predicts heat on NVIDIA H200" not in page.said("h3")
    ceilings = [row[0] for row in _figure(report, "roofline").numbers.rows if row[1] is None]
    assert ceilings == ["H200 SXM 141GB, bfloat16", "H200 SXM 141GB, 8 bits"]


def test_many_layers_are_drawn_in_part(layer_frame: Callable[..., pa.Table]) -> None:
    frame = layer_frame(tokens=tuple(range(1, 161)), tp_sizes=(1, 2, 4, 8))
    figure = figures_of(accuracy_figures(layers_held_out(frame)))["residuals"]
    assert frame.num_rows == 5120
    assert figure.svg.count("h0") == MOST_DRAWN
    assert f"{MOST_DRAWN} of 5120 calls are drawn" in figure.caption
    # Powers of two where token counts are many; each row of the table is over all calls.
    assert [row[0] for row in figure.numbers.rows][:3] == ["1", "2–3", "4–7"]
    assert sum(row[1] for row in figure.numbers.rows) == 5120


def test_energy_nobody_measured_has_no_figures(
    tmp_path: Path, frame: pa.Table, read_page: Any
) -> None:
    nothing = {
        name: pa.nulls(frame.num_rows, frame[name].type)
        for name in frame.column_names
        if name.startswith(("energy", "constant", "power_w"))
    }
    nothing["power_capped"] = pa.array([False] * frame.num_rows)
    for name, column in nothing.items():
        frame = frame.set_column(frame.column_names.index(name), name, column)
    folder = layer_dataset(
        tmp_path / "h100", energy_source=None, energy_trusted=None, power_limit_w=None
    )
    page = read_page(render_page(report_of(folder, frame)))
    assert "Residuals" in page.said("h3")
    for title in ("Energy against latency", "Performance per watt"):
        assert title not in page.said("h3")
    assert "Energy and power: not known; figures of them are left out." in page.said("li")


def test_too_few_layers_and_unknown_splits_are_refused(tmp_path: Path, frame: pa.Table) -> None:
    with pytest.raises(DatasetError, match="no usable expert and 20 whole layers"):
        report_of(layer_dataset(tmp_path / "few", rows=20), frame)
    folder = layer_dataset(tmp_path / "many")
    for split in ("tokens", "sparse", "sparse:2", "fewshot:0", ""):
        with pytest.raises(InputError, match="is unknown; no report was made; use token, shape"):
            report_of(folder, frame, split)


def _figure(report: Report, name: str) -> Figure:
    return next(f for section in report.sections for f in section.figures if f.name == name)
