"""A wall meter's CSV: what is understood, what is refused, and how it is set in time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from costprof.core.errors import InputError
from costprof.profiler.energy.meter import MeterReadings, read_meter
from costprof.profiler.energy.trace import Progress, Window
from costprof.profiler.energy.windows import METER_RULES, Rejected, read_trial
from costprof.profiler.energy.workload import Clocks

T0 = 1_700_000_000.0


def written(folder: Path, text: str) -> Path:
    path = folder / "power.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "1700000000,80\n1700000001.5,81.5\n",
        "unix_time_s,watts\n1700000000,80\n1700000001.5,81.5\n",
        "\ufefftime;power;volts\n1700000000;80;230\n\n1700000001.5;81.5;231\n",
        "1700000000\t80\n1700000001.5\t81.5",
    ],
    ids=["bare", "header", "semicolons", "tabs"],
)
def test_usual_forms_are_read(tmp_path: Path, text: str) -> None:
    meter = read_meter(written(tmp_path, text))
    assert meter.unix_s.tolist() == [T0, T0 + 1.5]
    assert meter.watts.tolist() == [80.0, 81.5]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds 0 readings"),
        ("time,watts\n1700000000,80\n", "holds 1 readings"),
        ("t,w\n1700000000,80\n1699999999,80\n", "line 3: time 1699999999 is not after 1700000000"),
        ("1700000000,80\n1700000000,80\n", "line 2: time 1700000000 is not after"),
        ("1700000000000,80\n", "line 1: time 1.7e+12 looks like milliseconds"),
        ("12.5,80\n13.5,80\n", "line 1: time 12.5 looks like no Unix time"),
        ("nan,80\n", "line 1: time nan looks like no Unix time"),
        ("80,1700000000\n", "line 1: time 80 looks like no Unix time"),
        ("1700000000,-3\n", "line 1: -3 W is no power of a machine"),
        ("1700000000,250000\n", "line 1: 250000 W is no power of a machine"),
        ("1700000000,nan\n", "line 1: nan W is no power"),
        ("1700000000,80\n1700000001,off\n", "line 2: '1700000001,off' is not two numbers"),
        ("1700000000,80\n1700000001\n", "line 2: '1700000001' is not two numbers"),
    ],
)
def test_what_cannot_be_right_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError) as raised:
        read_meter(written(tmp_path, text))
    message = str(raised.value)
    assert words in message
    assert "no energy was taken from it" in message
    assert "\n" not in message


def test_a_file_that_is_not_text_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "power.csv"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match="is not text"):
        read_meter(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_meter(tmp_path / "none.csv")


def test_readings_are_set_on_the_monotonic_clock() -> None:
    meter = MeterReadings(T0 + np.arange(20.0), np.full(20, 80.0))
    start, end = Clocks(monotonic_s=102.0, unix_s=T0 + 2), Clocks(112.04, T0 + 12)
    assert meter.overlaps(start, end)
    trace = meter.on(start, end)
    # 40 ms of drift between the clocks, shared out evenly.
    np.testing.assert_allclose(trace.time_s, 102 + 1.004 * np.arange(11))
    assert not meter.overlaps(Clocks(0.0, T0 + 30), Clocks(5.0, T0 + 35))
    with pytest.raises(Rejected, match=r"clock was set by \+3600"):
        meter.on(start, Clocks(112.0, T0 + 3612))


def test_a_meter_of_one_reading_a_second_gives_the_true_energy() -> None:
    """40 W idle, 100 W under load, 20 calls a second: 3 J a call, 2 of them active... per 50 ms."""
    load_s, call_s = (20.0, 32.0), 0.05
    times = np.arange(0.3, 45.0, 1.0)
    watts = np.where((times >= load_s[0] - 1) & (times < load_s[1]), 100.0, 40.0)
    meter = MeterReadings(T0 + times, watts)
    marks = np.arange(*load_s, 0.1)
    progress = Progress(marks, (marks - load_s[0]) / call_s)
    found = read_trial(
        meter.on(Clocks(10.0, T0 + 10), Clocks(45.0, T0 + 45)),
        progress,
        Window(11.0, 18.0),
        Window(33.0, 40.0),
        power_source="external_meter",
        rules=METER_RULES,
    )
    assert (found["status"], found["source"]) == ("accepted", "external_meter"), found
    assert found["energy_mj"] == pytest.approx(100 * 50, rel=0.01)
    assert found["energy_active_mj"] == pytest.approx(60 * 50, rel=0.01)
    assert found["idle_drift"] == pytest.approx(0.0)
    short = meter.on(Clocks(10.0, T0 + 10), Clocks(28.0, T0 + 28))
    cut = read_trial(short, progress, Window(11.0, 18.0), None, rules=METER_RULES)
    assert cut["reason"].startswith("there are no readings for")
