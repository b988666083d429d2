"""The scripts made for a GPU, run for real on a stand-in for `torch.cuda` with a clock of its own.

`pytest -m gpu` runs them on a GPU.
"""

from __future__ import annotations

import json
import runpy
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_cuda
import pytest
import torch

from costprof.core.device import DeviceFingerprint
from costprof.core.expert import ExpertClass, Kernel
from costprof.profiler.attempts import Attempts
from costprof.profiler.plan import Run
from costprof.profiler.results import RunOutcome, calls_from_notes, read_results
from costprof.profiler.scenario import Scenario
from costprof.profiler.scripts import write_scripts
from costprof.profiler.spec import TimingSpec

CALL_US = 7.0
TIMING = TimingSpec(target_ms=10, max_repetitions=40)
# Eight copies of the weights hold two of the device's caches; one more is being read.
WEIGHT_BYTES = 3 * 64 * 64 * 2
DEVICE = DeviceFingerprint(
    kind="gpu", name="fake", memory_bytes=2**30, cache_bytes=4 * WEIGHT_BYTES
)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[..., Any]]:
    """Kernels of every temper, importable as `kernels_on_fake`."""
    device = fake_cuda.install(monkeypatch)

    def good(x: Any, w1: Any, w2: Any) -> None:
        device.kernel(CALL_US)

    def waits(x: Any, w1: Any, w2: Any) -> None:
        device.kernel(CALL_US)
        device.wait()

    def waits_unseen(x: Any, w1: Any, w2: Any) -> None:
        device.kernel(CALL_US)
        if device.graph is not None:
            device.wait()

    def outgrows_a_capture(x: Any, w1: Any, w2: Any) -> None:
        device.kernel(CALL_US)
        if device.graph is not None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    def breaks(x: Any, w1: Any, w2: Any) -> None:
        device.illegal_access()

    def too_large(x: Any, w1: Any, w2: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    module = types.ModuleType("kernels_on_fake")
    every = (good, waits, waits_unseen, outgrows_a_capture, breaks, too_large)
    found = {f.__name__: f for f in every}
    module.__dict__.update(found)
    monkeypatch.setitem(sys.modules, "kernels_on_fake", module)
    return found


def scenario(kernel: str, cache: Any = "cold") -> Scenario:
    return Scenario(
        expert=ExpertClass(d_model=64, d_ff=64),
        op="expert",
        tokens=2,
        cache_state=cache,
        kernel=Kernel(name=f"kernels_on_fake:{kernel}"),
        device="cuda",
    )


def run_scripts(
    folder: Path, scenarios: list[Scenario], monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[RunOutcome, dict[str, Any], list[dict[str, Any]]]:
    """Run what a sweep would write for a GPU, with its tensors on the CPU."""
    script = write_scripts(Run(tuple(scenarios)), folder, "clock", TIMING, DEVICE, **options)
    for path in folder.glob("*.json"):
        values = json.loads(path.read_text())
        if "device" in values:
            path.write_text(json.dumps({**values, "device": "cpu"}))
    notes = folder / "notes.jsonl"
    monkeypatch.setattr(sys, "argv", [str(script), str(notes)])
    runpy.run_path(str(script), run_name="__main__")
    outcome, done = read_results(notes)
    outcome.calls = calls_from_notes(done)
    return outcome, outcome.calls, [json.loads(line) for line in notes.read_text().splitlines()]


@pytest.mark.usefixtures("kernels")
def test_a_graph_holds_whole_rotations_and_its_launch_hides_in_half_a_millisecond(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = scenario("good")
    outcome, calls, _ = run_scripts(tmp_path, [one], monkeypatch)
    assert outcome.errors == {}
    assert outcome.timers == {one.scenario_id: "cuda_graph"}
    measured = calls[one.scenario_id]
    copies = 9
    assert measured.calls_per_sample % copies == 0
    assert measured.calls_per_sample * CALL_US >= 500
    launch_us = fake_cuda.LAUNCH_US / measured.calls_per_sample
    assert measured.wall_us == pytest.approx(CALL_US + launch_us)
    assert launch_us < 0.01 * CALL_US
    assert set(measured.pass_index) == {0, 1}
    per_replay_us = measured.wall_us[0] * measured.calls_per_sample
    assert measured.wall_us.size == 2 * -(-TIMING.target_ms * 1e3 // per_replay_us)


@pytest.mark.usefixtures("kernels")
def test_a_warm_call_is_replayed_on_one_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = scenario("good", "warm")
    _, calls, _ = run_scripts(tmp_path, [one], monkeypatch)
    assert calls[one.scenario_id].calls_per_sample == -(-500 // (CALL_US + fake_cuda.LAUNCH_US))


@pytest.mark.usefixtures("kernels")
def test_a_call_that_waits_is_timed_by_events_and_nothing_is_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = scenario("waits")
    outcome, calls, _ = run_scripts(tmp_path, [one], monkeypatch)
    assert outcome.timers == {one.scenario_id: "cuda_event"}
    assert calls[one.scenario_id].wall_us == pytest.approx(CALL_US)
    assert calls[one.scenario_id].calls_per_sample == 1
    assert fake_cuda.DEVICE.captures == 0
    assert fake_cuda.DEVICE.sync_mode == "default"


@pytest.mark.usefixtures("kernels")
def test_a_failed_capture_ends_the_process_and_the_next_one_takes_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenarios = [scenario("good"), scenario("waits_unseen")]
    attempts = Attempts(Run(tuple(scenarios)), TIMING)
    assert attempts.pending() == scenarios
    outcome, _, notes = run_scripts(tmp_path, scenarios, monkeypatch)
    assert notes[-1]["event"] == "stopped"
    assert fake_cuda.DEVICE.graph is None
    attempts.add(scenarios, outcome, "r.0")
    assert attempts.pending() == scenarios
    assert attempts.tried == dict.fromkeys((s.scenario_id for s in scenarios), 0)
    (reason,) = attempts.uncapturable.values()
    assert reason == (
        "its capture failed (RuntimeError: operation not permitted when stream is capturing)"
    )
    outcome, _, _ = run_scripts(
        tmp_path, scenarios, monkeypatch, uncapturable=attempts.uncapturable
    )
    attempts.add(scenarios, outcome, "r.1")
    assert attempts.pending() == []
    best = [attempts.best[s.scenario_id] for s in scenarios]
    assert [attempt.timer for attempt in best] == ["cuda_graph", "cuda_event"]
    assert [attempt.problem for attempt in best] == [None, None]


@pytest.mark.usefixtures("kernels")
def test_why_a_scenario_is_in_no_graph_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenarios = [scenario(name) for name in ("good", "waits", "waits_unseen", "outgrows_a_capture")]
    attempts = Attempts(Run(tuple(scenarios)), TIMING)
    while pending := attempts.pending():
        assert attempts.processes < 3, "each capture that fails costs a process"
        outcome, _, _ = run_scripts(
            tmp_path, pending, monkeypatch, uncapturable=attempts.uncapturable
        )
        attempts.add(pending, outcome, f"r.{attempts.processes}")
    notes = [attempts.best[each.scenario_id].notes for each in scenarios]
    assert notes[0] == ()
    prefix = "timed by events, the host's part included, not in a CUDA graph: "
    assert [note[0].removeprefix(prefix) for note in notes[1:]] == [
        "a call waits for the device",
        "its capture failed (RuntimeError: operation not permitted when stream is capturing)",
        "memory ran out while it was captured (OutOfMemoryError: CUDA out of memory. Tried to "
        "allocate 20.00 MiB.)",
    ]
    assert {attempts.best[each.scenario_id].problem for each in scenarios} == {None}


@pytest.mark.usefixtures("kernels")
def test_a_device_that_is_broken_by_one_scenario_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenarios = [scenario("good"), scenario("breaks"), scenario("good", "warm")]
    attempts = Attempts(Run(tuple(scenarios)), TIMING)
    outcome, _, notes = run_scripts(tmp_path, attempts.pending(), monkeypatch)
    assert notes[-1]["event"] == "stopped"
    attempts.add(scenarios, outcome, "r.0")
    assert attempts.pending() == [scenarios[0], scenarios[2]]
    fake_cuda.DEVICE.broken = False
    outcome, _, _ = run_scripts(tmp_path, attempts.pending(), monkeypatch)
    attempts.add(attempts.pending(), outcome, "r.1")
    assert attempts.pending() == []
    assert attempts.best[scenarios[0].scenario_id].problem is None
    assert "illegal memory access" in str(attempts.best[scenarios[1].scenario_id].problem)
    assert attempts.best[scenarios[2].scenario_id].problem is None


@pytest.mark.usefixtures("kernels")
def test_out_of_memory_is_one_scenarios_own_affair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenarios = [scenario("too_large"), scenario("good")]
    outcome, calls, notes = run_scripts(tmp_path, scenarios, monkeypatch)
    assert notes[-1]["event"] == "ended"
    assert "CUDA out of memory" in outcome.errors[scenarios[0].scenario_id]
    assert set(calls) == {scenarios[1].scenario_id}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_on_a_gpu_a_graph_is_captured_and_timed(tmp_path: Path) -> None:
    from costprof.profiler.cuda_graphs import event_times, graph_times

    x = torch.randn(64, 64, device="cuda")
    with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
        calls = [lambda: x @ x] * 3
        for call in calls:
            call()
        graph = graph_times(calls, target_ms=20, min_repetitions=10, max_repetitions=100)
        events = event_times(calls, 100)
    assert graph["calls_per_sample"] % 3 == 0
    assert len(graph["wall_us"]) >= 10
    assert min(graph["wall_us"]) > 0
    assert min(events["wall_us"]) > 0
