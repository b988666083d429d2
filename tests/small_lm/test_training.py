"""Training learns, goes on where it stopped, and its losses push where they say."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from costprof.core.errors import InputError
from costprof.costmodel.table import CostTable
from costprof.runtime.small_lm.model import SmallLMConfig
from costprof.runtime.small_lm.quality import bits_per_byte
from costprof.runtime.small_lm.text import Corpus
from costprof.runtime.small_lm.training import Trainer, TrainingOptions, training_batch

TINY = SmallLMConfig(d_model=16, n_heads=2, n_layers=2, n_experts=8, top_k=3, d_ff=8, context=24)
QUICK = TrainingOptions(steps=60, sequences=6, warmup=10, learning_rate=1e-2)


def parameters(trainer: Trainer) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def test_it_learns_all_domains(small_corpus: Corpus) -> None:
    trainer = Trainer(TINY, QUICK)
    before = bits_per_byte(trainer.model, small_corpus, "test", sequences=4)
    for _ in range(QUICK.steps):
        trainer.train_step(small_corpus)
    after = bits_per_byte(trainer.model, small_corpus, "test", sequences=4)
    assert all(after[domain] < 0.5 * before[domain] for domain in before)


def test_an_interrupted_training_ends_as_one_that_was_not(
    small_corpus: Corpus, tmp_path: Path
) -> None:
    whole, first = Trainer(TINY, QUICK), Trainer(TINY, QUICK)
    for _ in range(8):
        whole.train_step(small_corpus)
    for _ in range(5):
        first.train_step(small_corpus)
    first.save(tmp_path / "state.safetensors")
    second = Trainer(TINY, dataclasses.replace(QUICK))
    second.resume(tmp_path / "state.safetensors")
    for _ in range(3):
        second.train_step(small_corpus)
    assert second.step == whole.step == 8
    for a, b in zip(parameters(whole), parameters(second), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_damaged_state_is_refused(small_corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    Trainer(TINY, QUICK).save(path)
    other = Trainer(dataclasses.replace(TINY, d_ff=4), QUICK)
    with pytest.raises(InputError, match="no state of this training"):
        other.resume(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="no state of this training"):
        Trainer(TINY, QUICK).resume(path)


def test_batches_differ_by_step_and_seed_and_hold_the_domains_in_turn(
    small_corpus: Corpus,
) -> None:
    batch = training_batch(small_corpus, 19, QUICK, 4)
    assert torch.equal(batch, training_batch(small_corpus, 19, QUICK, 4))
    assert not torch.equal(batch, training_batch(small_corpus, 19, QUICK, 5))
    other = dataclasses.replace(QUICK, seed=1)
    assert not torch.equal(batch, training_batch(small_corpus, 19, other, 4))
    assert [("{" in bytes(row.tolist()).decode()) for row in batch] == [False, True, False] * 2


def test_a_cost_weight_wakes_fewer_experts(
    small_corpus: Corpus, make_table: Callable[..., CostTable]
) -> None:
    cost = {}
    for weight in (0.0, 2.0):
        how = dataclasses.replace(QUICK, cost_weight=weight, cost_batch=4)
        trainer = Trainer(TINY, how, make_table())
        for _ in range(QUICK.steps):
            trainer.train_step(small_corpus)
        probe = Trainer(TINY, dataclasses.replace(how, cost_weight=1.0), make_table())
        probe.model, probe.step = trainer.model, trainer.step
        cost[weight] = probe.train_step(small_corpus).cost
    assert math.isfinite(cost[2.0])
    assert cost[2.0] < 0.9 * cost[0.0]


def test_a_cost_without_a_fitting_table_is_refused(make_table: Callable[..., CostTable]) -> None:
    how = dataclasses.replace(QUICK, cost_weight=0.1)
    with pytest.raises(InputError, match="no table"):
        Trainer(TINY, how)
    with pytest.raises(InputError, match="a table of 16 experts"):
        Trainer(TINY, how, make_table(16))
