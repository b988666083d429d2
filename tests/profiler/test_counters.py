from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from costprof.core.device import detect_device, software_versions
from costprof.profiler.backends.selftimed import inprocess_backend
from costprof.profiler.counters import add_counters, aggregate, choose
from costprof.profiler.dataset import read_measurements
from costprof.profiler.ncu import read_raw_page
from costprof.profiler.plan import Run, make_plan
from costprof.profiler.spec import SweepSpec, parse_spec
from costprof.profiler.sweep import Sweep

NCU_DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "ncu"
DURATION = "gpu__time_duration.sum"


class Silent:
    def process_begins(self, run: Run, scenarios: int, notes: Path) -> None: ...

    def run_ends(self, run: Run, statuses: dict[str, int]) -> None: ...


def test_sums_add_up_and_rates_are_weighted_by_duration() -> None:
    counters = [
        (0, "a", DURATION, "ns", 100.0),
        (0, "a", "dram__bytes_read.sum", "byte", 10.0),
        (0, "a", "lts__t_sector_hit_rate.pct", "%", 50.0),
        (1, "b", DURATION, "ns", 300.0),
        (1, "b", "dram__bytes_read.sum", "byte", 5.0),
        (1, "b", "lts__t_sector_hit_rate.pct", "%", 90.0),
        (2, "c", DURATION, "ns", 50.0),
    ]
    assert aggregate(counters) == {
        DURATION: 450.0,
        "dram__bytes_read.sum": 15.0,
        "lts__t_sector_hit_rate.pct": 80.0,
    }


def test_a_real_page_reduces_to_one_value_a_metric() -> None:
    page = NCU_DATA / "a10g_raw_page.csv"
    if not page.is_file():
        pytest.skip("the ncu sample is not beside this checkout")
    counters = list(read_raw_page(page))
    kernels = {index for index, *_ in counters}
    reduced = aggregate(counters)
    total = sum(value for _, _, metric, _, value in counters if metric == DURATION)
    assert reduced[DURATION] == pytest.approx(total)
    assert len(kernels) >= 1
    assert len(reduced) == len({metric for _, _, metric, _, _ in counters})


def test_the_subset_spreads_over_whole_experts_and_layers() -> None:
    values = {
        "name": "many",
        "experts": {"a": {"d_model": 64, "d_ff": 64, "dtype": "float32"}},
        "measure": [{"expert": "a", "ops": ["expert", "fc1"], "tokens": list(range(1, 60))}],
    }
    chosen = choose(make_plan(parse_spec(values, source="test"), "cpu").scenarios)
    assert len({s.scenario_id for s in chosen}) == len(chosen) == 20
    assert {s.op for s in chosen} == {"expert"}
    assert (chosen[0].tokens, chosen[-1].tokens) == (1, 59)


@pytest.mark.nsys
def test_counters_that_cannot_be_had_are_explained_and_cost_nothing(
    tmp_path: Path, tiny_spec: SweepSpec
) -> None:
    if shutil.which("ncu") is None:
        pytest.skip("ncu is not installed")
    if detect_device().kind == "gpu":
        pytest.skip("this machine has a GPU whose counters may be readable")
    plan, device = make_plan(tiny_spec, "cpu"), detect_device("cpu")
    work = Sweep(plan, tmp_path, inprocess_backend(), device, software_versions())
    work.run(Silent())
    before = read_measurements(tmp_path)
    report = add_counters(plan, tmp_path, device)
    assert report.counted == 0
    assert str(report.problem).startswith("ncu saw no kernel in expert 64x64")
    assert read_measurements(tmp_path).equals(before)
