"""One attached model, called by several threads at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tiny_moes import LAYERS, flat_table, tiny_moe
from torch import Tensor
from watching import Watch

from costprof.routing import Marginal
from costprof.runtime.integrations import attach


@pytest.fixture
def model() -> Any:
    return tiny_moe("qwen3_moe")


def ids(batch: int = 4, length: int = 5) -> Tensor:
    return torch.randint(3, 64, (batch, length), generator=torch.Generator().manual_seed(7))


def test_threads_route_their_own_rows(model: Any) -> None:
    prompt, threads = ids(3, 4), 2  # 12 rows, as many as the others decode at once
    attached = attach(model, flat_table(), Marginal(lam=5.0, q=0.3))
    with torch.no_grad():
        plain = model(prompt).logits

    def prefill(number: int) -> bool:
        with torch.no_grad():
            return all(torch.equal(model(prompt).logits, plain) for _ in range(40))

    def decode(number: int) -> Tensor:
        done: Tensor = model.generate(ids(12, 2), max_new_tokens=20, min_new_tokens=20)
        return done

    with ThreadPoolExecutor(2 * threads) as pool:
        decoded = pool.map(decode, range(threads))
        assert all(pool.map(prefill, range(threads)))
        assert all(torch.equal(each, decode(0)) for each in decoded)
    calls: dict[int, list[str]] = {}
    for record in attached.records:
        calls.setdefault(record.batch, []).append(record.layer)
    layers = [f"model.layers.{layer}.mlp.gate" for layer in range(LAYERS)]
    assert all(each == layers for each in calls.values())
    assert sorted(calls) == list(range(1 + 40 * threads + 20 * (threads + threads)))


def test_threads_share_a_history_without_losing_a_batch(model: Any) -> None:
    attached = attach(model, flat_table(), Watch())

    def run(number: int) -> None:
        with torch.no_grad():
            for _ in range(20):
                model(ids())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))
    assert set(attached._history.values()) == {80}
    assert attached.summary().calls == 80 * LAYERS
