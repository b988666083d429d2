"""A layer's price as a sum over its experts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from public_layers import Fitted
from typer.testing import CliRunner

from costprof.cli.main import app
from costprof.costmodel.grouped.additive import (
    Batch,
    example_batches,
    fit_additive,
    knots_for,
)
from costprof.costmodel.grouped.points import LayerPoints
from costprof.costmodel.grouped.serialise import from_bytes
from costprof.costmodel.grouped.token_counts import load_of_counts
from costprof.costmodel.table import CostTable
from costprof.costmodel.tablefile import read_table
from costprof.profiler.presets import preset_moe


def stairs(counts: np.ndarray) -> np.ndarray:
    """Weights read once an expert, then tiles of 16 rows that cost alike."""
    return np.where(counts > 0, 5.0 + 0.4 * np.ceil(counts / 16), 0.0)


def test_a_price_that_is_a_sum_over_experts_is_found_again() -> None:
    batches = example_batches(64, 8)
    prices = np.array([20.0 + stairs(b.counts).sum(axis=-1).mean() for b in batches])
    found = fit_additive(batches, prices, knots_for(batches))
    assert found.base == pytest.approx(20.0, rel=0.1)
    assert found.values[0] == pytest.approx(5.4, rel=0.05)
    assert np.abs(found.price(batches) / prices - 1.0).mean() < 0.01
    others = [Batch(0, "", np.random.default_rng(seed).integers(0, 90, (1, 64))) for seed in (0, 1)]
    truth = [20.0 + stairs(each.counts).sum() for each in others]
    assert found.price(others) == pytest.approx(truth, rel=0.02)


def test_more_tokens_never_cost_less_and_nothing_costs_less_than_nothing() -> None:
    batches = example_batches(16, 4)
    noise = np.random.default_rng(0).lognormal(0.0, 0.4, len(batches))
    prices = noise * np.array([b.tokens**0.3 for b in batches])
    found = fit_additive(batches, prices, knots_for(batches))
    assert found.base >= 0.0
    assert found.values[0] >= 0.0
    assert (np.diff(found.values) >= 0.0).all()


def test_example_batches_gather_on_few_experts_as_well() -> None:
    batches = [b for b in example_batches(64, 8) if b.tokens == 16 and b.distribution == "balanced"]
    active = sorted(int((b.counts > 0).sum()) for b in batches)
    assert active[0] == 16
    assert active[-1] == 64
    assert all(b.counts.sum() == 16 * 8 and b.counts.max() <= 16 for b in batches)


def test_a_table_of_predictions_prices_layers_as_the_model_does(
    fitted: Fitted, tmp_path: Path
) -> None:
    out = tmp_path / "predicted.parquet"
    command = ["table", "predict", str(fitted.table), "--preset", "olmoe-1b-7b", "--out", str(out)]
    done = CliRunner().invoke(app, [*command, "--note", "layers of a made-up device"])
    assert done.exit_code == 0, done.output
    file = read_table(out)
    assert set(file.rows["tier"].to_pylist()) == {"predicted"}
    assert "layers of a made-up device" in file.manifest.notes
    assert file.model == read_table(fitted.table).model
    table = CostTable.load(out, device=file.manifest.device)
    moe = preset_moe("OLMoE-1B-7B")
    assert (table.n_experts, table.moe.top_k) == (64, 8)
    counts = [rounded(np.random.default_rng(tokens), tokens) for tokens in (4, 16, 64, 256)]
    points = LayerPoints.of_columns(
        {
            "framework": [file.rows["framework"][0].as_py()] * len(counts),
            "kernel": [file.rows["kernel"][0].as_py()] * len(counts),
            "precision": ["bfloat16"] * len(counts),
            "hidden": [moe.expert.d_model] * len(counts),
            "inner": [moe.expert.d_ff] * len(counts),
            "top_k": [8] * len(counts),
            "experts": [64] * len(counts),
            "ep_size": [1] * len(counts),
            "tp_size": [1] * len(counts),
            "tokens": [int(each.sum()) / 8 for each in counts],
            "distribution": ["balanced"] * len(counts),
        }
    ).with_load(load_of_counts([each[None] for each in counts]))
    whole = from_bytes(file.model).predict(points)
    priced = table.layer_cost(torch.from_numpy(np.stack(counts)))
    assert priced.latency_us.numpy() == pytest.approx(whole.latency_us[1], rel=0.15)
    active_mj = (whole.power_w - 75.0) * whole.latency_us[1] * 1e-3
    assert priced.energy_mj.numpy() == pytest.approx(active_mj, rel=0.2)


def rounded(draw: np.random.Generator, tokens: int) -> np.ndarray:
    """Return the counts of `tokens` tokens that each choose 8 of 64 experts at random."""
    chosen = [draw.permutation(64)[:8] for _ in range(tokens)]
    return np.bincount(np.concatenate(chosen), minlength=64)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--preset", "gpt-oss-20b"], "knows no kernel for mxfp4"),
        (["--preset", "cpu-demo"], "is a sweep file, not a model"),
        (["--preset", "OLMoE-1B-7B", "--kernel", "cutlass"], "knows no cutlass for bfloat16"),
        (["--preset", "OLMoE-1B-7B", "--preset", "olmoe-1b-7b"], "have the name OLMoE-1B-7B"),
        (["--preset", "OLMoE-1B-7B", "--note", " "], "--note is empty"),
    ],
)
def test_what_cannot_be_priced_is_refused_in_one_line(
    fitted: Fitted, tmp_path: Path, arguments: list[str], said: str
) -> None:
    out = tmp_path / "predicted.parquet"
    done = CliRunner().invoke(
        app, ["table", "predict", str(fitted.table), *arguments, "--out", str(out)]
    )
    assert done.exit_code == 1
    assert said in str(done.exception) + done.output
    assert not out.exists()
