"""A report of a sweep's experts, on a device whose costs are known."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from costprof.core.errors import InputError
from costprof.core.expert import ExpertClass
from costprof.core.work import op_work
from costprof.costmodel.report.build import make_report
from costprof.costmodel.report.figure import Figure, Report
from costprof.costmodel.report.page import render_page

SMALL = ExpertClass(d_model=256, d_ff=512, dtype="float32")
LARGE = ExpertClass(d_model=256, d_ff=2048, dtype="float32")
PACKED = ExpertClass(d_model=256, d_ff=512, dtype="float32", quantisation="int4")
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128)


def no_layers(*arguments: Any, **named: Any) -> Any:
    raise AssertionError("no whole layer of named routing is there")


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, world: Any, write_dataset: Callable[..., Path]
) -> Path:
    """Three experts over tokens, one failed row, a noisy one, four layers."""
    known = world(noise=0.01, wiggle=0.1)
    rows = [known.row(expert, tokens) for expert in (SMALL, LARGE, PACKED) for tokens in TOKENS]
    rows += [
        known.row(SMALL, n, op=op) for op in ("fc1", "fc2", "activation") for n in (1, 4, 16, 64)
    ]
    rows[3]["status"] = "noisy"
    rows.append(known.row(SMALL, 256, status="failed", latency_us_p50=None))
    layers = [(8, 8, 8, 8), (32, 0, 0, 0), (16, 8, 4, 4), (20, 4, 4, 4)]
    rows += [
        known.row(
            SMALL,
            sum(counts),
            op="layer",
            counts=counts,
            experts=4,
            top_k=1,
            ep_size=1,
            tp_size=1,
            batch_tokens=sum(counts),
            distribution="made up",
        )
        for counts in layers
    ]
    for row in rows:
        row["power_mean_w"] = 10.0 + row["tokens"] ** 0.5
        row["backend"], row["timer"] = "inprocess", "monotonic_clock"
    out = tmp_path_factory.mktemp("report") / "known"
    return write_dataset(out, rows, {"name": "known <script>alert(1)</script>"})


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    return make_report(folder, "token", held_out=no_layers)


def figure(report: Report, name: str) -> Figure:
    return next(f for section in report.sections for f in section.figures if f.name == name)


def test_the_head_says_what_was_used_and_what_is_modelled(report: Report) -> None:
    facts = dict(report.facts)
    assert facts["Device"] == "known CPU"
    assert facts["Rows"] == "40 used, 1 of them noisy; 1 failed or unusable"
    assert facts["Measured by"] == "inprocess (monotonic_clock)"
    assert any(
        line.startswith("Energy and power (modelled): modelled") for line in report.provenance
    )
    assert any("Temperature rise: always modelled" in line for line in report.provenance)


def test_errors_are_those_of_costprof_fit(report: Report, folder: Path) -> None:
    from costprof.costmodel.fit import fit_dataset

    validation = fit_dataset(folder).manifest.validation
    inside = validation["latency"]["interior"]
    found = {row[:2]: row[2:] for row in figure(report, "errors").numbers.rows}
    for method, name in (("model", "costprof"), ("linear", "linear in tokens")):
        wanted = inside[method]
        assert found["latency, inside the measured range", name][:4] == (
            wanted["points"],
            wanted["mape"],
            wanted["median"],
            wanted["p90"],
        )
    assert (
        found["latency, inside the measured range", "costprof"][4]
        == (inside["model"]["coverage_90"])
    )
    (layer,) = validation["layers"].values()
    composed = [values for (what, _), values in found.items() if what.startswith("layer of")]
    assert composed[0][1] == layer["latency"]["model"]["mape"]


def test_the_roofline_is_that_of_the_device(report: Report) -> None:
    numbers = figure(report, "roofline").numbers
    rows = {row[0]: row[1:] for row in numbers.rows}
    # The planted ceilings: 50 GFLOP/s, 8 GB/s from cold memory.
    assert rows["float32, cold weights"][3] == pytest.approx(50e9, rel=0.15)
    assert rows["float32, cold weights"][1] == pytest.approx(50 / 8, rel=0.2)
    intensity = sorted(
        op_work(e, "expert", n).flops / op_work(e, "expert", n).bytes
        for e in (SMALL, LARGE)
        for n in TOKENS
    )
    assert rows["expert float32"][1] == pytest.approx((intensity[7] + intensity[8]) / 2)


def test_the_surface_holds_the_measured_medians(report: Report, world: Any) -> None:
    numbers = figure(report, "surface-shape").numbers
    assert numbers.columns[1:9] == tuple(str(n) for n in TOKENS[:8])
    rows = {row[0]: row[1:] for row in numbers.rows}
    expected = world(noise=0.01, wiggle=0.1).row(LARGE, 16)["latency_us_p50"]
    assert rows["256×2048 float32"][numbers.columns.index("16") - 1] == pytest.approx(expected)


def test_power_and_heat_are_called_modelled(report: Report) -> None:
    names = {f.name: f for section in report.sections for f in section.figures}
    assert "no meter was read" in names["energy-latency"].caption
    assert "(modelled)" in names["drivers-heat"].caption
    assert "no meter was read" in names["drivers-power"].caption
    top = [row[0] for row in names["drivers-latency"].numbers.rows[:3]]
    assert set(top) & {"flops", "bytes", "tokens"}


def test_the_page_loads_nothing_and_can_be_read_without_seeing(
    report: Report, read_page: Any
) -> None:
    text = render_page(report)
    assert re.search(r"https?:|//[a-z]|@import|url\(|<script|<iframe|<link|<img", text) is None
    page = read_page(text)
    loading = {"src", "href", "srcset", "data", "action", "poster"}
    given = [each for _, each in page.elements]
    loads = {value for each in given for name, value in each.items() if name in loading}
    assert all(value.startswith("#") for value in loads)
    ids = [each["id"] for each in given if "id" in each]
    assert len(ids) == len(set(ids))
    assert loads == {f"#{name}" for name in ids}
    policy = next(g for t, g in page.elements if t == "meta" and "http-equiv" in g)
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"
    drawn = [each for tag, each in page.elements if tag == "svg"]
    figures = [f for section in report.sections for f in section.figures]
    assert len(drawn) == sum(bool(f.svg) for f in figures)
    assert all(each["role"] == "img" for each in drawn)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("table") == tags.count("figcaption") == len(figures)
    assert re.search(r"\bnan\b|\binf\b", text) is None


def test_names_of_the_dataset_are_no_markup(report: Report) -> None:
    text = render_page(report)
    assert "known &lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_the_same_dataset_gives_the_same_page(report: Report, folder: Path) -> None:
    assert render_page(make_report(folder, "token", held_out=no_layers)) == render_page(report)


def test_every_number_goes_into_json(report: Report) -> None:
    import json

    said = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    figures = said["sections"][0]["figures"]
    assert figures["calibration"]["columns"] == ["nominal %", "observed %"]
    assert len(figures["roofline"]["rows"]) > 3


def test_experts_are_left_out_by_tokens_alone(folder: Path) -> None:
    with pytest.raises(InputError, match="--split shape with a dataset of single experts"):
        make_report(folder, "shape", held_out=no_layers)


def test_one_point_a_curve_is_a_page_without_errors(
    world: Any, tmp_path: Path, write_dataset: Callable[..., Path], read_page: Any
) -> None:
    folder = write_dataset(tmp_path / "single", [world().row(SMALL, 8), world().row(LARGE, 8)])
    page = read_page(render_page(make_report(folder, "token", held_out=no_layers)))
    assert "Roofline" in page.said("h3")
    assert "Residuals" not in page.said("h3")
    assert any("No curve has two points" in text for text in page.said("p"))
