"""The predictions that come with the package."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from typer.testing import CliRunner

from costprof.cli.main import app
from costprof.core.device import DeviceFingerprint
from costprof.core.errors import TableError
from costprof.costmodel import table as table_module
from costprof.costmodel.compatibility import TableDriftWarning
from costprof.costmodel.shipped import shipped_table
from costprof.costmodel.table import CostTable
from costprof.costmodel.tablefile import read_table
from costprof.profiler.presets import model_names, preset_moe


def test_every_named_model_is_priced_and_nothing_calls_itself_measured() -> None:
    file = read_table(shipped_table())
    assert {moe.name for moe in file.manifest.moes} == set(model_names())
    assert set(file.rows["tier"].to_pylist()) == {"predicted"}
    assert set(file.rows["op"].to_pylist()) == {"expert"}
    assert any("aiconfigurator" in note for note in file.manifest.notes)
    assert "H200" in file.manifest.device.name


@pytest.mark.parametrize("name", model_names())
def test_prices_are_those_of_the_model_and_grow_with_the_experts_awake(name: str) -> None:
    with pytest.warns(TableDriftWarning, match="predictions for NVIDIA H200"):
        table = CostTable.shipped(name)
    moe = preset_moe(name)
    assert table.n_experts == moe.experts
    assert table.moe.top_k == moe.top_k
    assert table.expert_class(0) == moe.expert
    few, all_awake = torch.zeros(2, moe.experts, dtype=torch.int64)
    few[: moe.top_k], all_awake[:] = 4, 4
    price = table.layer_cost(torch.stack([few, all_awake]))
    assert 5.0 < float(price.latency_us[0]) < float(price.latency_us[1]) < 5000.0
    assert 0.0 < float(price.energy_mj[0]) < float(price.energy_mj[1])
    # No device reads its weights faster than its memory gives them.
    bytes_read = float(table.expert_weight_bytes.sum())
    assert float(price.latency_us[1]) > 0.9 * bytes_read / 4.8e12 * 1e6


def test_on_an_h200_nothing_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    device = read_table(shipped_table()).manifest.device
    assert isinstance(device, DeviceFingerprint)
    monkeypatch.setattr(table_module, "detect_device", lambda kind: device)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CostTable.shipped("OLMoE-1B-7B")


def test_a_model_without_predictions_is_refused() -> None:
    with (
        pytest.warns(TableDriftWarning),
        pytest.raises(TableError, match=r"it prices: .*Qwen3-30B-A3B"),
    ):
        CostTable.shipped("Llama-2-7B")


def test_route_takes_the_shipped_table_and_runs_nothing() -> None:
    done = CliRunner().invoke(app, ["route", "--moe", "OLMoE-1B-7B", "--batches", "2", "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["moe"] == "OLMoE-1B-7B"
    assert result["measured_device"] is None
    assert result["tiers"] == ["predicted"]
    plain, marginal = result["variants"][:2]
    assert marginal["predicted_latency_us"] < plain["predicted_latency_us"]
    assert any("No table was named" in note for note in result["notes"])
