"""Routed traces become layers that are swept; policies are compared trace by trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_steps.policies import BATCHES, PLAIN, POLICIES, TRACES, compared, routed, write_layers
from gpu_steps.specs import VLLM, vllm_spec, write_spec
from routers import BASELINE, compare
from schedulers import Shape, copies_wanted

from costprof.core.device import DeviceFingerprint
from costprof.core.expert import ExpertClass, Kernel, LayerClass
from costprof.costmodel.manifest import Manifest, MoeSpec
from costprof.costmodel.rows import TableRow, rows_table
from costprof.costmodel.table import CostTable
from costprof.profiler.cold import rotate_bytes
from costprof.profiler.plan import make_plan
from costprof.profiler.scenario import Scenario
from costprof.profiler.spec import load_spec

EXPERTS, TOP_K = 16, 4


@pytest.fixture(scope="module")
def table() -> CostTable:
    """Return a table whose experts cost the same, most of it for waking them."""
    expert = ExpertClass(d_model=64, d_ff=64, dtype="float32")
    rows = [
        TableRow(
            expert=expert,
            kernel=Kernel(name="kernels:expert"),
            tokens=tokens,
            latency_us=(us, us, us),
            energy_mj=(us, us, us),
            power_w=20.0,
            temp_rise_c=0.5,
        )
        for tokens in (1, 4, 16, 64, 256)
        for us in [20.0 + 0.1 * tokens]
    ]
    classes = (rows[0].class_id,) * EXPERTS
    moe = MoeSpec(name="sixteen", top_k=TOP_K, class_of_expert=classes)
    device = DeviceFingerprint(kind="cpu", name="chosen prices")
    return CostTable(rows_table(rows), Manifest(device=device, moes=(moe,)))


def test_every_policy_routes_every_trace_into_a_layer_that_can_be_swept(
    table: CostTable, tmp_path: Path
) -> None:
    found = routed(table)
    traces = found["traces"]
    assert found["left_out"] == {}
    assert len(traces) == len(BATCHES) * TRACES * len(POLICIES)
    for each in traces:
        rows = sum(each["counts"])
        full = each["tokens"] * TOP_K
        assert rows == full if each["policy"] == PLAIN else 0 < rows <= full
    woken = dict.fromkeys(POLICIES, 0)
    for each in traces:
        woken[each["policy"]] += sum(count > 0 for count in each["counts"])
    assert woken["marginal, latency"] < woken[PLAIN]

    write_layers(table, traces, tmp_path / "spec.toml")
    plan = make_plan(load_spec(tmp_path / "spec.toml"), "cpu")
    swept = {scenario.layer.counts for scenario in plan.scenarios if scenario.layer}
    assert swept == {tuple(each["counts"]) for each in traces}
    assert routed(table) == found, "an interrupted sweep goes on with the same traces"


def test_policies_are_compared_trace_by_trace() -> None:
    def trace(number: int, policy: str, *counts: int) -> dict[str, Any]:
        named = {"tokens": 2, "trace": number, "policy": policy}
        return {**named, "counts": list(counts), "gate_mass_lost": 0.25 if policy != PLAIN else 0.0}

    traces = [
        trace(0, PLAIN, 2, 1, 1),
        trace(0, "other", 2, 2, 0),
        trace(1, PLAIN, 1, 2, 1),
        trace(1, "other", 1, 2, 1),  # decides alike
        trace(2, PLAIN, 1, 1, 2),  # failed
        trace(2, "other", 0, 2, 2),
    ]
    latency_us = {(2, 1, 1): 40.0, (2, 2, 0): 30.0, (1, 2, 1): 50.0, (0, 2, 2): 31.0}
    plain, other = compared(traces, latency_us)
    assert (plain["traces"], other["traces"]) == (2, 2)
    assert plain["ratio_to_top_k"] == {"min": 1.0, "median": 1.0, "max": 1.0}
    assert other["ratio_to_top_k"] == {"min": 0.75, "median": 0.875, "max": 1.0}
    assert (plain["active_experts"], other["active_experts"]) == (3.0, 2.5)
    assert other["gate_mass_lost"] == 0.25
    assert compared(traces, {(2, 1, 1): 40.0}) == [], "nothing to compare with"


def test_routers_are_timed_against_softmax_and_top_k(
    table: CostTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("routers.CPU_CALLS", 16)
    monkeypatch.setattr("routers.BATCHES", (1, 16))
    figures, left_out = compare(table, torch.device("cpu"))
    assert left_out == {}
    routers = {BASELINE, *(f"route, {name}" for name in POLICIES)}
    assert {(each["tokens"], each["router"]) for each in figures} == {
        (tokens, router) for tokens in (1, 16) for router in routers
    }
    for each in figures:
        assert 0 < each["us_p25"] <= each["us_p75"]
        assert each["timer"] == "monotonic_clock"
        if each["router"] == BASELINE:
            assert each["ratio"] == pytest.approx(1)


@pytest.mark.parametrize("model", ["Qwen3-30B-A3B", "DeepSeek-V3"])
def test_vllm_is_swept_beside_ours_on_the_same_counts_and_unpacked_weights(
    tmp_path: Path, model: str
) -> None:
    spec = vllm_spec(model)
    write_spec(tmp_path / "spec.toml", spec)
    assert load_spec(tmp_path / "spec.toml") == spec
    plan = make_plan(spec, "cuda")
    ours, theirs = (
        {(s.expert, s.tokens, s.layer) for s in plan.scenarios if (s.kernel.name == VLLM) is vllm}
        for vllm in (False, True)
    )
    assert ours == theirs
    assert {expert.quantisation for expert, _, _ in ours} == {"none"}


def test_weights_are_copied_as_often_as_a_sweep_copies_them() -> None:
    shape = Shape("layer", 256, 128, 64, 4, (16,))
    expert = ExpertClass(d_model=256, d_ff=128)
    device = DeviceFingerprint(kind="gpu", name="", cache_bytes=3 * 2**20, memory_bytes=2**40)
    size_bytes = 64 * 3 * 256 * 128 * 2
    scenario = Scenario(
        expert=expert,
        op="layer",
        tokens=16,
        cache_state="cold",
        kernel=Kernel(name="a:b"),
        device="cuda",
        layer=LayerClass(experts=64, top_k=4, counts=(16,) * 4 + (0,) * 60, distribution="few"),
    )
    # As the generated script has it: one, and what the bytes to rotate through ask for.
    swept = 1 + -(-rotate_bytes(scenario, device) // size_bytes)
    assert copies_wanted(shape, size_bytes, device.cache_bytes, device.memory_bytes) == swept == 9
    assert copies_wanted(shape, size_bytes, device.cache_bytes, 12 * size_bytes) == 3
