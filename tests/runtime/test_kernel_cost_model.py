"""The user's own interface over a written table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from costprof.core.errors import InputError, TableError
from costprof.core.expert import ExpertClass
from costprof.core.work import op_work
from costprof.runtime import KernelCostModel

DENSE = ExpertClass(d_model=64, d_ff=128, dtype="float32")
PACKED = ExpertClass(d_model=64, d_ff=128, dtype="float32", quantisation="int4")


@pytest.fixture(scope="module")
def model(write: Callable[..., Path]) -> KernelCostModel:
    return KernelCostModel(data_path=write([DENSE, PACKED]))


def test_cost_is_that_of_the_table(model: KernelCostModel) -> None:
    cost = model.get_cost(0, (4, 64))
    assert cost["latency_us"] == pytest.approx(96 + 4)
    assert cost["latency_us_p05"] == pytest.approx(0.9 * 100)
    assert cost["latency_us_p95"] == pytest.approx(1.1 * 100)
    assert cost["energy_mj"] == pytest.approx(2.0)
    assert cost["power_w"] == pytest.approx(20.0)
    assert cost["temp_rise_c"] == pytest.approx(0.5)
    work = op_work(DENSE, "expert", 4)
    assert (cost["flops"], cost["bytes"]) == (work.flops, work.bytes)
    assert all(isinstance(value, float) for value in cost.values())
    assert model.get_cost(1, (4, 64))["latency_us"] < cost["latency_us"]


def test_batch_and_sequence_multiply(model: KernelCostModel) -> None:
    assert model.get_cost(0, (2, 4, 64)) == model.get_cost(0, [8, 64])


@pytest.mark.parametrize("shape", [(64,), (1, 2, 3, 64), (-1, 64), (1.5, 64), (True, 64), ()])
def test_shapes_without_a_token_count_are_refused(
    model: KernelCostModel, shape: tuple[int, ...]
) -> None:
    with pytest.raises(InputError, match=r"no token count can be read from it; give \(tokens, d_m"):
        model.get_cost(0, shape)


def test_other_feature_widths_and_experts_are_refused(model: KernelCostModel) -> None:
    with pytest.raises(InputError, match=r"ends in 32; expert 0 takes 64 features; .* ends in 64"):
        model.get_cost(0, (4, 32))
    with pytest.raises(InputError, match=r"expert 2 of 2; it cannot be priced; use 0 … 1"):
        model.get_cost(2, (4, 64))


def test_a_missing_table_is_a_table_error(tmp_path: Path) -> None:
    with pytest.raises(TableError):
        KernelCostModel(data_path=tmp_path / "none.parquet")
