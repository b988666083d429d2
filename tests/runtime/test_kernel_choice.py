"""The runtime's kernel and tile config: from the table, by tokens and by state."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from costprof.core.device import detect_device
from costprof.core.expert import ExpertClass, Kernel
from costprof.costmodel.manifest import Manifest, MoeSpec
from costprof.costmodel.rows import TableRow, rows_table
from costprof.costmodel.table import CostTable
from costprof.routing import Gate, SystemState
from costprof.runtime import MoELayer
from costprof.runtime.kernel_choice import KernelChoice, stage_of
from costprof.runtime.kernels import torch_blocked, torch_ffn

EXPERT = ExpertClass(d_model=64, d_ff=96, dtype="float32")
QUICK = {"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 64, "ORDER": 0}
FRUGAL = {"BLOCK_M": 8, "BLOCK_N": 32, "BLOCK_K": 32, "ORDER": 2}
LARGE = {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64, "ORDER": 1}


def table(name: str = "costprof.runtime.kernels.torch_blocked:swiglu", tiled: bool = True) -> Any:
    """Two experts. FRUGAL takes 1.4 times QUICK's time and half its energy; LARGE is for many."""
    rows = []
    for config, us, mj in ((QUICK, 1.0, 1.0), (FRUGAL, 1.4, 0.5), (LARGE, 1.0, 1.0)):
        for tokens in (1, 64, 256):
            factor = (2.0 if tokens < 256 else 0.5) if config == LARGE else 1.0
            latency, energy = factor * us * (50 + tokens), factor * mj * tokens
            rows.append(
                TableRow(
                    expert=EXPERT,
                    kernel=Kernel(name=name, config=config if tiled else {}),
                    tokens=tokens,
                    latency_us=(latency, latency, latency),
                    energy_mj=(energy, energy, energy),
                    power_w=1.0,
                    temp_rise_c=0.0,
                )
            )
        if not tiled:
            break
    moe = MoeSpec(name="two", top_k=1, class_of_expert=(rows[0].class_id,) * 2)
    return CostTable(rows_table(rows), Manifest(device=detect_device("cpu"), moes=(moe,)))


def test_tokens_and_state_decide_the_config() -> None:
    choice = KernelChoice.from_table(table(), 0, "cpu")
    assert choice is not None
    assert choice.kernel is torch_blocked.swiglu
    assert choice.config(16) == QUICK
    assert choice.config(256) == LARGE
    assert choice.config(16, SystemState(stage="warm")) == QUICK
    assert choice.config(16, SystemState(stage="hot")) == FRUGAL
    assert choice.config(16, SystemState(stage="critical")) == FRUGAL
    capped = SystemState(power_w=690.0, power_limit_w=700.0)
    assert choice.config(16, capped) == FRUGAL
    assert choice.config(16, dataclasses.replace(capped, power_w=500.0)) == QUICK


@pytest.mark.parametrize(
    ("state", "stage"),
    [
        (SystemState(), "cool"),
        (SystemState(power_w=700.0), "cool"),
        (SystemState(power_w=700.0, power_limit_w=700.0, stage="warm"), "hot"),
        (SystemState(power_w=700.0, power_limit_w=700.0, stage="critical"), "critical"),
    ],
)
def test_a_device_at_its_power_limit_is_hot(state: SystemState, stage: str) -> None:
    assert stage_of(state) == stage


def test_a_kernel_without_tiles_runs_under_no_config() -> None:
    choice = KernelChoice.from_table(table(tiled=False), 0, "cpu")
    assert choice is not None
    assert choice.kernel is torch_blocked.swiglu
    assert choice.config(16) == {}


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "costprof.runtime.kernels.gone:swiglu",
        "costprof.runtime.kernels.torch_ffn:gone",
    ],
)
def test_kernels_of_others_are_not_chosen(name: str) -> None:
    assert KernelChoice.from_table(table(name), 0, "cpu") is None


def test_a_triton_kernel_is_chosen_for_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    priced = table("costprof.runtime.kernels.triton_experts:swiglu")
    monkeypatch.setattr("costprof.runtime.kernel_choice.interpreted", lambda: False)
    assert KernelChoice.from_table(priced, 0, "cpu") is None
    assert KernelChoice.from_table(priced, 0, "cuda") is not None


def test_a_layer_runs_its_experts_under_the_chosen_config(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, int]] = []

    def watched(x: torch.Tensor, *weights: torch.Tensor, **config: int) -> torch.Tensor:
        seen.append(config)
        return torch_blocked_swiglu(x, *weights, **config)

    torch_blocked_swiglu = torch_blocked.swiglu
    monkeypatch.setattr(torch_blocked, "swiglu", watched)
    generator = torch.Generator().manual_seed(0)
    layer = MoELayer.random(
        torch.randn(2, 64, generator=generator),
        gate=Gate(top_k=1),
        table=table(),
        generator=generator,
    )
    x = torch.randn(12, 64, generator=generator)
    with torch.inference_mode():
        cool = layer.run(x)
        assert seen
        assert all(config == QUICK for config in seen)
        seen.clear()
        hot = layer.run(x, state=SystemState(stage="critical"))
        assert all(config == FRUGAL for config in seen)
        plain = torch_ffn.swiglu(x, *layer.experts[0].weights)
        chosen = layer.experts[0](x)
    torch.testing.assert_close(cool.hidden, hot.hidden, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(chosen, plain, rtol=1e-4, atol=1e-5)
