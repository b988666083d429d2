"""The Triton experts on silicon: real shapes, bf16 and fp8, CUDA graphs. `pytest -m gpu`."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from costprof.core.expert import ExpertClass
from costprof.profiler.counts import layer_counts
from costprof.runtime.kernels import triton_experts
from costprof.runtime.kernels.packing import pack_weights, unpack_weight
from costprof.runtime.kernels.triton_permute import permute, unpermute

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]

# (d_model, d_ff, experts, top_k) of public models, fewer experts where all would not fit a test.
SHAPES = {
    "Qwen3-30B-A3B": (2048, 768, 128, 8),
    "OLMoE-1B-7B": (2048, 1024, 64, 8),
    "Mixtral-8x7B": (4096, 14336, 8, 2),
    "DeepSeek-V3": (7168, 2048, 16, 8),
    "gpt-oss-20b": (2880, 2880, 32, 4),
}
# Relative to the largest output. float32 accumulation leaves the rounding of the intermediate and
# of the result: a few units of 2^-9 (bfloat16) or 2^-12 (float16).
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3}


def layer(
    d_model: int, d_ff: int, experts: int, rows: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    w1 = torch.randn(experts, 2 * d_ff, d_model, device="cuda", dtype=dtype) * d_model**-0.5
    w2 = torch.randn(experts, d_model, d_ff, device="cuda", dtype=dtype) * d_ff**-0.5
    return torch.randn(rows, d_model, device="cuda", dtype=dtype), w1, w2


def reference(x: Tensor, counts: list[int], w1: Tensor, w2: Tensor) -> Tensor:
    """In float32 throughout, expert by expert."""
    out = torch.empty(x.shape[0], w2.shape[1], device="cuda", dtype=torch.float32)
    start = 0
    for expert, count in enumerate(counts):
        if count:
            rows = slice(start, start + count)
            gate, up = (x[rows].float() @ w1[expert].float().T).chunk(2, dim=1)
            out[rows] = (torch.nn.functional.silu(gate) * up) @ w2[expert].float().T
            start += count
    return out


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    error = (actual.float() - expected).abs().max() / expected.abs().max()
    assert float(error) <= tolerance


@pytest.fixture(autouse=True)
def _exact_reference() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [1, 16, 512])
@pytest.mark.parametrize("persistent", [0, 1])
def test_layers_of_real_models(
    model: str, dtype: torch.dtype, tokens: int, persistent: int
) -> None:
    d_model, d_ff, experts, top_k = SHAPES[model]
    counts = list(layer_counts(experts, top_k, tokens, "zipf-1.2"))
    x, w1, w2 = layer(d_model, d_ff, experts, sum(counts), dtype)
    on_device = torch.tensor(counts, dtype=torch.int32, device="cuda")
    actual = triton_experts.grouped_swiglu(x, on_device, w1, w2, persistent=persistent)
    assert_close(actual, reference(x, counts, w1, w2), TOLERANCE[dtype])


@pytest.mark.parametrize("quantisation", ["int8", "int4", "fp8"])
@pytest.mark.parametrize("tokens", [1, 16, 512])
def test_packed_weights(quantisation: str, tokens: int) -> None:
    if quantisation == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no fp8")
    d_model, d_ff, experts, top_k = SHAPES["OLMoE-1B-7B"]
    counts = list(layer_counts(experts, top_k, tokens, "zipf-1.2"))
    x, w1, w2 = layer(d_model, d_ff, experts, sum(counts), torch.bfloat16)
    expert = ExpertClass(d_model=d_model, d_ff=d_ff, quantisation=quantisation)  # type: ignore[arg-type]
    stored = pack_weights((w1, w2), expert)
    dense = [unpack_weight(*stored[i : i + 2], torch.float32) for i in (0, 2)]
    on_device = torch.tensor(counts, dtype=torch.int32, device="cuda")
    actual = triton_experts.grouped_swiglu(x, on_device, *stored)
    # fp8 rounds the rows of both products to 3 bits of mantissa, 2^-4 relative each; over a sum of
    # many terms the errors of random signs average out.
    tolerance = 8e-2 if quantisation == "fp8" else 2e-2
    assert_close(actual, reference(x, counts, *dense), tolerance)


def test_a_captured_layer_follows_the_counts() -> None:
    d_model, d_ff, experts, top_k = SHAPES["Qwen3-30B-A3B"]
    first = list(layer_counts(experts, top_k, 16, "balanced"))
    x, w1, w2 = layer(d_model, d_ff, experts, sum(first), torch.bfloat16)
    counts = torch.tensor(first, dtype=torch.int32, device="cuda")
    triton_experts.grouped_swiglu(x, counts, w1, w2)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = triton_experts.grouped_swiglu(x, counts, w1, w2)
    for distribution in ("zipf-1.2", "active-8"):
        other = list(layer_counts(experts, top_k, 16, distribution))
        counts.copy_(torch.tensor(other, dtype=torch.int32))
        graph.replay()
        assert_close(out, reference(x, other, w1, w2), TOLERANCE[torch.bfloat16])


def test_permute_and_back_at_prefill_size() -> None:
    torch.manual_seed(0)
    tokens, experts, top_k = 4096, 128, 8
    x = torch.randn(tokens, 2048, device="cuda", dtype=torch.bfloat16)
    indices = torch.rand(tokens, experts, device="cuda").topk(top_k).indices
    permuted = permute(x, indices, experts)
    order = torch.sort(indices.flatten(), stable=True).indices
    assert torch.equal(permuted.rows, x[order // top_k])
    assert torch.equal(permuted.counts.long(), torch.bincount(indices.flatten(), minlength=experts))
    weights = torch.full((tokens, top_k), 1 / top_k, device="cuda")
    assert torch.equal(unpermute(permuted.rows, permuted.position, weights), x)


def test_nothing_waits_for_the_device() -> None:
    d_model, d_ff, experts, top_k = SHAPES["OLMoE-1B-7B"]
    x = torch.randn(16, d_model, device="cuda", dtype=torch.bfloat16)
    _, w1, w2 = layer(d_model, d_ff, experts, 1, torch.bfloat16)
    indices = torch.rand(16, experts, device="cuda").topk(top_k).indices
    weights = torch.full((16, top_k), 1 / top_k, device="cuda")

    def run() -> Tensor:
        permuted = permute(x, indices, experts)
        rows = triton_experts.grouped_swiglu(permuted.rows, permuted.counts, w1, w2)
        return unpermute(rows, permuted.position, weights)

    run()  # compiles
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the mode is a prototype
            torch.cuda.set_sync_debug_mode("error")
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
