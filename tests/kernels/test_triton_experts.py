"""The Triton experts against a naive float64 reference: interpreted here, run where a GPU is."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import naive_expert, naive_layer, relative_error
from torch import Tensor

from costprof.core.errors import InputError
from costprof.core.expert import ExpertClass
from costprof.runtime.kernels import triton_experts
from costprof.runtime.kernels.packing import unpack_weight
from costprof.runtime.kernels.tiles import (
    FLOAT32,
    RULE_OF_THUMB,
    TILE_SPACE,
    choose_tile,
    rule_of_thumb,
    tile_allowed,
)
from costprof.runtime.kernels.triton_linear import StoredWeight, grouped_linear
from costprof.runtime.kernels.triton_schedule import schedule_tiles

BF16 = torch.bfloat16
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {"float32": 1e-5, "float16": 2e-3}
SMALL = {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 64, "GROUP_M": 2}
SINGLE = {"swiglu": triton_experts.swiglu, "relu": triton_experts.relu}
GROUPED = {"swiglu": triton_experts.grouped_swiglu, "relu": triton_experts.grouped_relu}


def normal(*shape: int, dtype: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator) * shape[-1] ** -0.5
    return values.to(DEVICE, getattr(torch, dtype))


def dense(stored: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """What the kernel's weights stand for, in float64."""
    if len(stored) == 2:
        return stored[0].double(), stored[1].double()
    values1, scale1, values2, scale2 = stored
    return (
        unpack_weight(values1, scale1, torch.float64),
        unpack_weight(values2, scale2, torch.float64),
    )


def stored_weights(
    dtype: str, quantisation: str, activation: str, *, experts: int = 0, d_model: int, d_ff: int
) -> tuple[Tensor, ...]:
    expert = ExpertClass(
        d_model=d_model,
        d_ff=d_ff,
        activation=activation,  # type: ignore[arg-type]
        dtype=dtype,  # type: ignore[arg-type]
        quantisation=quantisation,  # type: ignore[arg-type]
    )
    wide = d_ff * (2 if activation == "swiglu" else 1)
    axis = (experts,) if experts else ()
    weights = (
        normal(*axis, wide, d_model, dtype=dtype, seed=1),
        normal(*axis, d_model, d_ff, dtype=dtype, seed=2),
    )
    return SINGLE[activation].prepare(weights, expert)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("quantisation", ["none", "int8", "int4"])
@pytest.mark.parametrize("activation", ["swiglu", "relu"])
@pytest.mark.parametrize("tokens", [1, 19])
def test_a_single_expert(dtype: str, quantisation: str, activation: str, tokens: int) -> None:
    stored = stored_weights(dtype, quantisation, activation, d_model=128, d_ff=64)
    x = normal(tokens, 128, dtype=dtype, seed=3)
    actual = SINGLE[activation](x, *stored, **SMALL)
    assert actual.dtype == x.dtype
    expected = naive_expert(x, *dense(stored), activation)
    assert relative_error(actual, expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("quantisation", ["none", "int8", "int4"])
@pytest.mark.parametrize("activation", ["swiglu", "relu"])
@pytest.mark.parametrize("persistent", [0, 1, 2])
def test_a_layer_of_uneven_counts(
    dtype: str, quantisation: str, activation: str, persistent: int
) -> None:
    counts = [3, 0, 18, 1, 0, 16]
    stored = stored_weights(
        dtype, quantisation, activation, experts=len(counts), d_model=128, d_ff=64
    )
    x = normal(sum(counts), 128, dtype=dtype, seed=3)
    actual = GROUPED[activation](x, device_counts(counts), *stored, **SMALL, persistent=persistent)
    expected = naive_layer(x, counts, *dense(stored), activation)
    assert relative_error(actual, expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("quantisation", ["none", "int8", "int4"])
@pytest.mark.parametrize(("d_model", "d_ff"), [(192, 64), (64, 320), (256, 192)])
def test_sizes_that_tiles_do_not_divide(quantisation: str, d_model: int, d_ff: int) -> None:
    counts = [5, 0, 2]
    stored = stored_weights(
        "float32", quantisation, "swiglu", experts=3, d_model=d_model, d_ff=d_ff
    )
    x = normal(7, d_model, dtype="float32", seed=4)
    actual = triton_experts.grouped_swiglu(
        x, device_counts(counts), *stored, BLOCK_M=16, BLOCK_N=128, BLOCK_K=128
    )
    expected = naive_layer(x, counts, *dense(stored), "swiglu")
    assert relative_error(actual, expected) <= TOLERANCE["float32"]


def test_sizes_that_no_power_of_two_divides() -> None:
    stored = stored_weights("float32", "none", "swiglu", d_model=90, d_ff=45)
    x = normal(3, 90, dtype="float32", seed=4)
    actual = triton_experts.swiglu(x, *stored, **SMALL)
    assert relative_error(actual, naive_expert(x, *dense(stored), "swiglu")) <= 1e-5


@pytest.mark.parametrize(
    "tile", [*RULE_OF_THUMB, *FLOAT32], ids=lambda tile: f"m{tile.BLOCK_M}k{tile.BLOCK_K}"
)
def test_every_tile_of_the_rule_of_thumb(tile) -> None:  # type: ignore[no-untyped-def]
    counts = [tile.BLOCK_M + 1, 0, 2]
    stored = stored_weights("float32", "none", "swiglu", experts=3, d_model=128, d_ff=128)
    x = normal(sum(counts), 128, dtype="float32", seed=5)
    actual = triton_experts.grouped_swiglu(x, device_counts(counts), *stored, **tile.to_dict())
    h = [x[: counts[0]], x[counts[0] :]]
    w1, w2 = dense(stored)
    for rows, expert, got in ((h[0], 0, actual[: counts[0]]), (h[1], 2, actual[counts[0] :])):
        gate, up = (rows.double() @ w1[expert].T).chunk(2, dim=1)
        expected = (torch.nn.functional.silu(gate) * up) @ w2[expert].T
        assert relative_error(got, expected.cpu()) <= 1e-5


def test_an_empty_expert_is_not_read_and_rows_beyond_the_counts_are_left_alone() -> None:
    w1, w2 = stored_weights("float32", "none", "swiglu", experts=3, d_model=64, d_ff=64)
    w1[1], w2[1] = float("nan"), float("nan")
    x = normal(9, 64, dtype="float32", seed=6)
    x[6:] = float("nan")  # padding
    actual = triton_experts.grouped_swiglu(x, device_counts([4, 0, 2]), w1, w2, **SMALL)
    expected = naive_layer(x, [4, 0, 2], w1, w2, "swiglu")
    assert relative_error(actual[:6], expected[:6]) <= 1e-5


def test_no_rows_at_all() -> None:
    stored = stored_weights("float32", "none", "swiglu", experts=2, d_model=64, d_ff=64)
    x = torch.empty(0, 64, device=DEVICE)
    assert triton_experts.grouped_swiglu(x, device_counts([0, 0]), *stored).shape == (0, 64)


@pytest.mark.parametrize("quantisation", ["none", "int8", "int4"])
def test_parts_compose_to_the_whole(quantisation: str) -> None:
    stored = stored_weights("float32", quantisation, "relu", d_model=128, d_ff=64)
    x = normal(3, 128, dtype="float32", seed=7)
    half = len(stored) // 2
    hidden = torch.relu(triton_experts.linear(x, *stored[:half], **SMALL))
    parts = triton_experts.linear(hidden, *stored[half:], **SMALL)
    assert torch.equal(parts, triton_experts.relu(x, *stored, **SMALL))


def test_fp8_on_rows_that_e4m3_holds_exactly() -> None:
    # Triton's interpreter rounds to e4m3 wrongly where a mantissa overflows, so nothing is rounded.
    expert = ExpertClass(d_model=128, d_ff=64, dtype="float32", quantisation="fp8")
    weight = normal(96, 128, dtype="float32", seed=8)
    values, scale = triton_experts.linear.prepare((weight,), expert)
    generator = torch.Generator().manual_seed(9)
    x = torch.randint(-15, 16, (5, 128), generator=generator).to(DEVICE, torch.float32)
    x[:, 0] = 14.0  # 448 / 32: the scale of each row is a power of two
    x = x.clamp(-14, 14)
    actual = triton_experts.linear(x, values, scale, **SMALL)
    expected = x.double() @ unpack_weight(values, scale, torch.float64).T
    assert relative_error(actual, expected.cpu()) <= 1e-5


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=70),
    spare=st.integers(0, 50),
    block_m=st.sampled_from([16, 32]),
)
def test_tiles_cover_every_row_once_and_lie_within_one_expert(
    counts: list[int], spare: int, block_m: int
) -> None:
    rows = sum(counts) + spare
    schedule = schedule_tiles(device_counts(counts), rows, block_m)
    expected, start = [], 0
    for expert, count in enumerate(counts):
        for row in range(start, start + count, block_m):
            expected.append([expert, row, start + count])
        start += count
    assert int(schedule.n_tiles) == len(expected) <= schedule.max_tiles
    assert schedule.tiles[: len(expected)].tolist() == expected


def device_counts(counts: list[int]) -> Tensor:
    return torch.tensor(counts, dtype=torch.int32, device=DEVICE)


def test_the_rule_of_thumb_follows_the_rows_and_gives_way_to_a_config() -> None:
    assert [choose_tile({}, rows, 90, BF16).BLOCK_M for rows in (1, 16, 17, 64, 65, 4096)] == [
        16, 16, 32, 64, 128, 128
    ]  # fmt: skip
    assert choose_tile({}, 4096, 90, BF16).BLOCK_N > choose_tile({}, 4096, 80, BF16).BLOCK_N
    assert choose_tile({}, 4096, 120, BF16) == choose_tile({}, 4096, 80, BF16)
    assert choose_tile({}, 4096, 90, torch.float32).BLOCK_M == 64
    chosen = choose_tile({"BLOCK_N": 32, "persistent": 1}, 100, 90, BF16)
    assert (chosen.BLOCK_M, chosen.BLOCK_N, chosen.persistent) == (128, 32, 1)


def test_bad_input_says_what_is_wrong() -> None:
    stored = stored_weights("float32", "int4", "swiglu", experts=2, d_model=64, d_ff=64)
    x = torch.zeros(2, 64, device=DEVICE)
    counts = device_counts([1, 1])
    with pytest.raises(InputError, match=r"tile parameter 'BLOCK_Q' is unknown; .*BLOCK_M"):
        triton_experts.grouped_swiglu(x, counts, *stored, BLOCK_Q=1)
    with pytest.raises(InputError, match="BLOCK_K 32 splits the groups of 4-bit weights"):
        triton_experts.grouped_swiglu(x, counts, *stored, BLOCK_K=32)
    with pytest.raises(InputError, match=r"counts have shape \[1\] for 2 experts"):
        triton_experts.grouped_swiglu(x, counts[:1], *stored)
    with pytest.raises(InputError, match="rows of 32 values meet weights of 64 input channels"):
        triton_experts.grouped_swiglu(x[:, :32].contiguous(), counts, *stored)
    with pytest.raises(InputError, match="the memory of x is not contiguous"):
        triton_experts.grouped_swiglu(torch.zeros(64, 2, device=DEVICE).T, counts, *stored)
    with pytest.raises(InputError, match="3 weight tensors for 2 projections"):
        triton_experts.grouped_swiglu(x, counts, *stored[:3])


def test_a_tensor_off_the_gpu_is_refused_by_one_line() -> None:
    code = (
        "import torch\n"
        "from costprof.runtime.kernels import triton_experts\n"
        "try:\n"
        "    triton_experts.linear(torch.zeros(1, 64), torch.zeros(64, 64))\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={}
    )
    assert done.stdout.startswith("ToolError a Triton kernel was given a tensor on cpu; ")


def test_the_tile_space_keeps_what_can_work() -> None:
    bf16 = ExpertClass(d_model=2048, d_ff=768)
    int4 = ExpertClass(d_model=2048, d_ff=768, quantisation="int4")
    assert all(tile_allowed(tile.to_dict(), bf16) for tile in RULE_OF_THUMB)
    too_deep = {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 256, "num_stages": 5}
    assert not tile_allowed(too_deep, bf16)
    assert not tile_allowed({"BLOCK_K": 32}, int4)
    assert tile_allowed({"BLOCK_K": 32}, bf16)
    deep = {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 8, "num_stages": 4}
    assert tile_allowed(deep, bf16)
    assert tile_allowed(deep, bf16, shared_bytes=163 * 1024)
    assert not tile_allowed(deep, bf16, shared_bytes=99 * 1024)
    for capability in (80, 120):
        for tile in rule_of_thumb(capability, torch.bfloat16):
            assert tile_allowed(tile.to_dict(), bf16, shared_bytes=99 * 1024), tile
    for tile in RULE_OF_THUMB:
        assert all(value in TILE_SPACE[name] for name, value in tile.to_dict().items())


def test_one_product_leaves_rows_of_no_tile_alone() -> None:
    x = normal(4, 64, dtype="float32", seed=10)
    weight = StoredWeight(normal(2, 32, 64, dtype="float32", seed=11))
    tile = choose_tile(SMALL, 2, 90, torch.float32)
    out = grouped_linear(x, weight, schedule_tiles(device_counts([2, 1]), 4, 16), "none", tile)
    expected = torch.cat([x[:2] @ weight.values[0].T, x[2:3] @ weight.values[1].T])
    assert relative_error(out[:3], expected.double().cpu()) <= 1e-5
