"""One trial: start the sampler and the workload, wait, and read what they left behind."""

from __future__ import annotations

import contextlib
import datetime
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costprof.core.device import DeviceFingerprint
from costprof.profiler.backends.process import note_crash
from costprof.profiler.energy.meter import MeterReadings
from costprof.profiler.energy.sampler import sampling
from costprof.profiler.energy.trace import Trace, read_trace
from costprof.profiler.energy.windows import METER_RULES, Rejected, read_trial
from costprof.profiler.energy.workload import (
    Phases,
    WorkloadNotes,
    read_workload,
    write_workload,
)
from costprof.profiler.importing import importing_environment
from costprof.profiler.journal import Journal
from costprof.profiler.process import run_tool
from costprof.profiler.redact import redact
from costprof.profiler.results import RunOutcome
from costprof.profiler.scenario import Scenario
from costprof.profiler.spec import TimingSpec

METER = "external_meter"


@dataclass(frozen=True, slots=True)
class Power:
    """Where power is read: by `reader`, a `module:function` that opens `device`."""

    reader: str
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where trials run and by what they are read: `power` None means by a wall meter, later."""

    folder: Path
    device: DeviceFingerprint
    timing: TimingSpec
    phases: Phases
    power: Power | None


def run_trial(bench: Bench, scenario: Scenario, trial: int, gap_s: float) -> dict[str, Any]:
    """Run trial number `trial` of `scenario` and return its row of `energy/`.

    Raises:
        ToolError: the sampler could not be started.
    """
    name = f"{scenario.scenario_id}.{trial}"
    script = write_workload(
        scenario,
        name,
        bench.folder / "scripts" / "energy",
        bench.phases,
        gap_s,
        bench.timing,
        bench.device,
    )
    notes = notes_path(bench.folder, name)
    notes.parent.mkdir(parents=True, exist_ok=True)
    notes.unlink(missing_ok=True)
    journal = Journal(bench.folder)
    # Two marks: the end of a run is by its mark, and the sampler outlives the workload.
    marks = [uuid.uuid4().hex for _ in range(2)]
    for mark in marks:
        journal.append("attempt", run_id=f"energy-{name}", source=name, mark=mark)
    trace_path = notes.with_suffix(".csv")
    timeout_s = bench.phases.total_s + bench.timing.timeout_s
    measured_at = datetime.datetime.now(datetime.UTC)
    with contextlib.ExitStack() as stack:
        sampler = None
        if bench.power is not None:
            sampler = stack.enter_context(
                sampling(bench.power.reader, bench.power.device, trace_path, mark=marks[0])
            )
        completed = run_tool(
            [sys.executable, str(script), str(notes)],
            timeout_s=timeout_s,
            env=importing_environment(),
            logs=notes.with_suffix(""),
            mark=marks[1],
        )
    journal.append("done", run_id=f"energy-{name}", statuses={})
    written = read_workload(notes)
    row: dict[str, Any] = {
        "scenario_id": scenario.scenario_id,
        "trial": trial,
        "source": METER if sampler is None else None,
        "launch": written.ready.get("launch"),
        "calls_per_step": written.ready.get("calls_per_step"),
        "weight_copies": written.ready.get("copies"),
        "capture_error": redact(written.capture_error),
        "num_threads": written.ready.get("threads"),
        "device_id": bench.device.device_id,
        "measured_at": measured_at,
    }
    outcome = RunOutcome(crash=None if written.ended else "the process ended before its load")
    note_crash(outcome, completed, timeout_s)
    if outcome.crash is not None:
        return row | {"status": "failed", "reason": redact(outcome.crash)}
    if sampler is None:
        return row | {"status": "waiting", "reason": "the file of the wall meter is not read yet"}
    if sampler.problem is not None:
        return row | {"status": "rejected", "reason": redact(sampler.problem)}
    return row | _read(read_trace(trace_path), written)


def read_by_meter(folder: Path, row: dict[str, Any], meter: MeterReadings) -> dict[str, Any] | None:
    """Return the columns of a trial that waited for `meter`; None if it was not read during it."""
    notes = read_workload(notes_path(folder, f"{row['scenario_id']}.{row['trial']}"))
    if notes.start is None or notes.end is None:
        return {"status": "failed", "reason": "the notes of the trial are missing in logs/energy"}
    if not meter.overlaps(notes.start, notes.end):
        return None
    try:
        trace = meter.on(notes.start, notes.end)
    except Rejected as rejection:
        return {"status": "rejected", "reason": str(rejection)}
    found = read_trial(
        trace,
        notes.progress,
        notes.idle_before,
        notes.idle_after,
        power_source="external_meter",
        rules=METER_RULES,
    )
    return {"reason": None, **found}


def notes_path(folder: Path, name: str) -> Path:
    """Where the workload of the trial `name` writes; the trace stands beside it as `.csv`."""
    return folder / "logs" / "energy" / f"{name}.jsonl"


def _read(trace: Trace, notes: WorkloadNotes) -> dict[str, Any]:
    return read_trial(trace, notes.progress, notes.idle_before, notes.idle_after)
