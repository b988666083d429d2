"""The workload's script: on this CPU, and its GPU form on a simulated stream.

There is no CUDA here, so graphs, events and the stream they run on are stood in for; what is tested
is the script's own book-keeping: calls counted, the queue never drained, the way out of a failed
capture.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from costprof.core.device import detect_device
from costprof.profiler.energy.workload import (
    Phases,
    WorkloadNotes,
    read_workload,
    write_workload,
)
from costprof.profiler.plan import make_plan
from costprof.profiler.scripts import write_script
from costprof.profiler.spec import parse_spec

PHASES = Phases(idle_s=0.2, window_s=0.2, preheat_s=0.2)
CALL_S = 5e-4

# Imported by every Python that has this folder on its path: also by the one that starts anew.
SIMULATED_STREAM = """
import contextlib, os, time
import torch

CALL_S = float(os.environ["TEST_CALL_S"])
state = {"end": 0.0, "captured": None, "idle_s": 0.0}

def queue(calls):
    now = time.monotonic()
    if state["end"] and now > state["end"]:
        state["idle_s"] += now - state["end"]
    state["end"] = max(now, state["end"]) + calls * CALL_S

def count():
    # What the kernel of the test calls: it runs on the stream, or is captured.
    if state["captured"] is None:
        queue(1)
    else:
        state["captured"].calls += 1

class Graph:
    calls = 0

    def replay(self):
        queue(self.calls)

class Event:
    def __init__(self, blocking=False):
        assert blocking

    def record(self):
        self.at = state["end"]

    def synchronize(self):
        time.sleep(max(0.0, self.at - time.monotonic()))

@contextlib.contextmanager
def graph(captured):
    if os.environ.get("TEST_NO_CAPTURE"):
        raise RuntimeError("operation not permitted when stream is capturing")
    state["captured"] = captured
    yield
    state["captured"] = None

def synchronize():
    time.sleep(max(0.0, state["end"] - time.monotonic()))

torch.cuda.CUDAGraph, torch.cuda.graph = Graph, graph
torch.cuda.Event, torch.cuda.synchronize = Event, synchronize
"""

KERNEL = """
import sitecustomize

def counted(x, w1, w2):
    sitecustomize.count()
"""


@pytest.fixture
def gpu_script(
    tmp_path: Path, energy_spec: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Return a runner of the GPU form of a workload on the simulated stream: gives its notes."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "sitecustomize.py").write_text(SIMULATED_STREAM)
    (modules / "kernel_for_workload.py").write_text(KERNEL)
    monkeypatch.syspath_prepend(str(modules))
    values = energy_spec("costprof.runtime.kernels.torch_ffn:swiglu")
    plan = make_plan(parse_spec(values, source="test"), "cpu")
    (scenario,) = plan.scenarios
    script = write_workload(
        scenario, "x", tmp_path / "scripts", PHASES, 0.05, plan.timing, detect_device("cpu")
    )
    write_script(
        script, "energy.py.j2", json.loads(script.with_suffix(".json").read_text()), device="cuda"
    )
    beside = script.with_name(f"{scenario.scenario_id}.json")
    scenario_values = json.loads(beside.read_text())
    scenario_values["kernel"]["name"] = "kernel_for_workload:counted"
    scenario_values["rotate_bytes"] = 7 * 3 * 64 * 64 * 4
    beside.write_text(json.dumps(scenario_values))

    def run(**environment: str) -> Path:
        notes = tmp_path / "notes.jsonl"
        notes.unlink(missing_ok=True)
        subprocess.run(
            [sys.executable, str(script), str(notes)],
            check=True,
            env={
                **os.environ,
                "PYTHONPATH": str(modules),
                "TEST_CALL_S": str(CALL_S),
                **environment,
            },
        )
        return notes

    return run


def steady_notes(run: Callable[..., Path], **environment: str) -> WorkloadNotes:
    """Return notes whose marks say that the stream did one call in CALL_S without a pause.

    A machine that stops the process for longer than what is queued drains the queue, so there are
    three tries; a queue that is kept too short fails them all. No call is ever too fast.
    """
    for _ in range(3):
        notes = read_workload(run(**environment))
        progress = notes.progress
        seconds = progress.time_s[-1] - progress.time_s[1]
        call_s = seconds / (progress.calls[-1] - progress.calls[1])
        assert call_s > 0.95 * CALL_S
        if call_s < 1.05 * CALL_S:
            return notes
    raise AssertionError(f"a call took {call_s:.2e} s, not {CALL_S} s: the queue ran empty")


def test_replays_of_a_graph_are_counted_and_the_queue_is_never_empty(
    gpu_script: Callable[..., Path],
) -> None:
    notes = steady_notes(gpu_script)
    assert notes.ended
    assert notes.ready["launch"] == "graph"
    assert notes.ready["copies"] == 8
    assert notes.ready["calls_per_step"] % 8 == 0, "every copy is used equally often"
    assert notes.ready["calls_per_step"] * CALL_S >= 0.01
    progress = notes.progress
    assert (np.diff(progress.time_s) > 0).all()
    assert (np.diff(progress.calls) % notes.ready["calls_per_step"] == 0).all()
    assert progress.time_s[-1] - progress.time_s[1] > 1.3
    assert notes.idle_before is not None
    assert notes.idle_after is not None
    assert notes.idle_before.end_s < progress.time_s[0]
    assert notes.idle_after.start_s > progress.time_s[-1]


def test_a_failed_capture_starts_anew_with_plain_launches(gpu_script: Callable[..., Path]) -> None:
    notes = steady_notes(gpu_script, TEST_NO_CAPTURE="1")
    assert notes.ended
    assert (notes.ready["launch"], notes.ready["calls_per_step"]) == ("plain", 1)
    assert notes.capture_error == ("RuntimeError: operation not permitted when stream is capturing")


def test_a_cpu_workload_counts_its_calls(
    tmp_path: Path, energy_spec: Callable[..., dict[str, Any]]
) -> None:
    values = energy_spec("costprof.runtime.kernels.torch_ffn:swiglu")
    plan = make_plan(parse_spec(values, source="test"), "cpu")
    script = write_workload(
        plan.scenarios[0], "y", tmp_path, PHASES, 0.0, plan.timing, detect_device("cpu")
    )
    assert "torch_ffn" not in script.read_text(), "what a user names travels as data"
    path = tmp_path / "notes.jsonl"
    before = time.monotonic(), time.time()
    subprocess.run([sys.executable, str(script), str(path)], check=True)
    after = time.monotonic(), time.time()
    notes = read_workload(path)
    assert notes.ended
    assert notes.ready["launch"] == "plain"
    assert notes.ready["threads"] == 1
    assert (np.diff(notes.progress.calls) > 0).all()
    assert notes.start is not None
    assert notes.end is not None
    phases_s = 2 * PHASES.idle_s + PHASES.load_s
    assert before[0] < notes.start.monotonic_s < notes.end.monotonic_s - phases_s
    assert before[1] < notes.start.unix_s < notes.end.unix_s - 0.9 * phases_s
    assert notes.end.monotonic_s < after[0]
    assert notes.end.unix_s < after[1]
    torn = tmp_path / "torn.jsonl"
    torn.write_text(path.read_text()[:-30])
    assert not read_workload(torn).ended
    assert read_workload(tmp_path / "none.jsonl").ready == {}
