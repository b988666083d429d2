"""What the checks add up to, and the command."""

from __future__ import annotations

import json
from typing import Any

import pytest
from command_line import run_apart
from pydantic import BaseModel, ConfigDict
from typer.testing import CliRunner

from costprof.cli.main import app
from costprof.profiler import doctor
from costprof.profiler.doctor import Check, Report, Status
from costprof.profiler.doctor.frameworks import TORCH
from costprof.profiler.doctor.gpu import ENERGY, POWER
from costprof.profiler.doctor.nsight import NSYS, ROUND_TRIP
from costprof.profiler.doctor.storage import DUCKDB


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class CheckRow(_Strict):
    name: str
    status: Status
    found: str
    consequence: str
    way_out: str


class BackendRow(_Strict):
    usable: bool
    ruled_out_by: str


class Document(_Strict):
    checks: list[CheckRow]
    device: str
    backends: dict[str, BackendRow]
    auto_backend: str
    energy_source_offered: str


def report(*, cuda: bool = False, **statuses: Status) -> Report:
    names = {"torch": TORCH, "trip": ROUND_TRIP, "duckdb": DUCKDB, "energy": ENERGY, "power": POWER}
    every: dict[str, Status] = dict.fromkeys(names, "ok") | statuses
    return Report(tuple(Check(names[key], every[key], "found") for key in names), cuda)


@pytest.mark.parametrize(
    ("given", "auto", "energy"),
    [
        (report(), "nsys", "modelled"),
        (report(cuda=True), "inprocess", "nvml_counter"),
        (report(cuda=True, energy="degraded"), "inprocess", "nvml_integral"),
        (report(cuda=True, energy="missing", power="missing"), "inprocess", "modelled"),
        (report(trip="missing"), "inprocess", "modelled"),
        (report(cuda=True, trip="missing"), "inprocess", "nvml_counter"),
        (report(duckdb="missing"), "inprocess", "modelled"),
        (report(torch="missing"), "none", "modelled"),
        (Report((), False), "none", "modelled"),
    ],
)
def test_what_the_checks_add_up_to(given: Report, auto: str, energy: str) -> None:
    assert given.auto_backend == auto
    assert given.energy_source == energy
    Document.model_validate(given.to_dict())


def test_a_backend_that_is_ruled_out_says_by_what() -> None:
    assert report(duckdb="missing").unusable == {
        "nsys": DUCKDB,
        "torch-profiler": "",
        "inprocess": "",
    }
    assert set(report(torch="missing").unusable.values()) == {TORCH}
    assert report(torch="missing").device == "none"


def run(monkeypatch: pytest.MonkeyPatch, given: Report, *args: str) -> Any:
    monkeypatch.setattr(doctor, "examine", lambda progress: given)
    return CliRunner().invoke(app, ["doctor", *args], env={"COLUMNS": "100"})


def test_the_table_fits_and_keeps_every_word(monkeypatch: pytest.MonkeyPatch) -> None:
    long = " ".join(f"[word{n}]" for n in range(60))
    checks = (Check(ROUND_TRIP, "missing", long, "consequence here", "way out here"),)
    done = run(monkeypatch, Report((*checks, Check(TORCH, "ok", "2.13")), False))
    assert done.exit_code == 0
    assert max(map(len, done.stdout.splitlines())) <= 100
    words = done.stdout.split()
    assert [word for word in words if word.startswith("[word")] == long.split()
    assert "-> consequence here" in done.stdout
    assert "way out: way out here" in done.stdout
    assert "Backends of costprof sweep: torch-profiler, inprocess" in done.stdout
    assert f"not nsys: see '{ROUND_TRIP}' above" in done.stdout


def test_nothing_to_measure_with_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(monkeypatch, report(torch="missing"))
    assert done.exit_code == 3
    assert "Backends of costprof sweep: none" in done.stdout
    done = run(monkeypatch, report(torch="missing"), "--json")
    assert done.exit_code == 3
    assert json.loads(done.stdout)["auto_backend"] == "none"


@pytest.mark.nsys
def test_this_machine() -> None:
    done = run_apart("doctor", "--json")
    assert done.returncode == 0, done.stderr
    document = Document.model_validate(json.loads(done.stdout))
    rows = {row.name: row for row in document.checks}
    assert len(rows) == len(document.checks)
    assert all(row.way_out for row in rows.values() if row.status != "ok")
    if rows[NSYS].status == "ok":
        assert rows[ROUND_TRIP].status == "ok"
        assert document.auto_backend == "nsys"
