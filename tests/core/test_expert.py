from __future__ import annotations

from typing import Any

import pytest
import torch

from costprof.core.errors import InputError
from costprof.core.expert import (
    ExpertClass,
    Kernel,
    LayerClass,
    Quantisation,
    class_id,
    refuse_priced_only,
)
from costprof.core.work import expert_weight_bytes, op_work


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"d_model": 0, "d_ff": 8}, "d_model is 0"),
        ({"d_model": 8, "d_ff": -1}, "d_ff is -1"),
        ({"d_model": 8, "d_ff": 8, "activation": "gelu"}, "activation 'gelu' is unknown"),
        ({"d_model": 8, "d_ff": 8, "dtype": "int3"}, "dtype 'int3' is unknown"),
        ({"d_model": 100, "d_ff": 64, "quantisation": "int4"}, "int4 with d_model 100"),
        ({"block": "attention", "d_model": 8, "n_heads": 2}, "n_kv_heads is 0"),
    ],
)
def test_impossible_classes_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        ExpertClass(**fields)


def test_a_layer_has_one_count_per_expert() -> None:
    with pytest.raises(InputError, match="2 token counts for 3 experts"):
        LayerClass(experts=3, top_k=1, counts=(1, 2), distribution="balanced")


def test_work_of_an_expert_against_torchs_own_count() -> None:
    expert = ExpertClass(d_model=64, d_ff=96, dtype="float32")
    x, w1, w2 = torch.randn(5, 64), torch.randn(192, 64), torch.randn(64, 96)
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        hidden = x @ w1.T
        _ = (torch.nn.functional.silu(hidden[:, :96]) * hidden[:, 96:]) @ w2.T
    products = op_work(expert, "fc1", 5).flops + op_work(expert, "fc2", 5).flops
    assert products == counter.get_total_flops()
    assert op_work(expert, "expert", 5).flops > products
    assert expert_weight_bytes(expert) == w1.nbytes + w2.nbytes


@pytest.mark.parametrize(
    ("quantisation", "weights", "scales"),
    [
        # fc1 is [2 * 200, 320], fc2 [320, 200]; blocks and groups at the edges are whole ones.
        ("fp8_block", 192_000, 4 * (4 * 3 + 3 * 2)),
        ("mxfp4", 96_000, 400 * 10 + 320 * 7),
    ],
)
def test_formats_that_are_priced_but_not_run(
    quantisation: Quantisation, weights: int, scales: int
) -> None:
    expert = ExpertClass(d_model=320, d_ff=200, quantisation=quantisation)
    assert expert_weight_bytes(expert) == weights + scales
    with pytest.raises(InputError, match=f"{quantisation} can be priced but not run"):
        refuse_priced_only(expert)


def test_tokens_and_tile_config_are_not_part_of_the_class() -> None:
    expert = ExpertClass(d_model=64, d_ff=64)
    plain = Kernel(name="m:f", source_hash="1")
    tiled = Kernel(name="m:f", source_hash="1", config={"BLOCK_M": 16})
    edited = Kernel(name="m:f", source_hash="2")
    assert class_id(expert, "expert", plain, "cold") == class_id(expert, "expert", tiled, "cold")
    assert class_id(expert, "expert", plain, "cold") != class_id(expert, "expert", edited, "cold")
    assert class_id(expert, "expert", plain, "cold") != class_id(expert, "expert", plain, "warm")
