"""Each expert's rows side by side, against a stable sort."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from costprof.core.errors import InputError
from costprof.routing.kernels import permutation_cpu
from costprof.runtime.permutation import Permutation, permutation

E = 7
Batch = tuple[Tensor, Tensor, Tensor]


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Any experts, the same one in two slots of a row too, and any slots empty."""
    shape = draw(st.integers(0, 40)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    indices = torch.randint(0, draw(st.integers(1, E)), shape, generator=generator)
    used = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    return indices, used, torch.bincount(indices[used], minlength=E)


def sorted_slots(indices: Tensor, used: Tensor) -> Tensor:
    return torch.argsort(indices.masked_fill(~used, E).flatten(), stable=True)


def assert_is_the_sort(got: Permutation, batch: Batch) -> None:
    indices, used, counts = (each.cpu() for each in batch)
    slots, places = (each.cpu() for each in got)
    assert torch.equal(slots, sorted_slots(indices, used))
    assert torch.equal(places[slots], torch.arange(indices.numel()))
    held = indices.flatten()[slots[: int(counts.sum())]]
    assert torch.equal(held, torch.repeat_interleave(torch.arange(E), counts))


@settings(max_examples=200, deadline=None)
@given(batch=batches())
def test_it_is_the_stable_sort(batch: Batch) -> None:
    assert permutation_cpu.available()
    assert_is_the_sort(permutation(*batch), batch)


@settings(max_examples=50, deadline=None)
@given(batch=batches())
def test_it_is_without_a_compiler_too(batch: Batch) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(permutation_cpu, "available", lambda: False)
        assert_is_the_sort(permutation(*batch), batch)


def test_strides_do_not_matter() -> None:
    indices = torch.arange(12).view(3, 4).T % E
    used = (torch.arange(24) % 3 > 0).view(4, 6)[:, ::2]
    batch = (indices, used, torch.bincount(indices[used], minlength=E))
    assert_is_the_sort(permutation(*batch), batch)


@pytest.mark.parametrize(
    "counts",
    [
        [1, 1, 0],  # of another assignment
        [2, 1, 0],  # too many
        [1, 0, 0],  # too few
        [3, -1, 0],
        [2],  # of fewer experts
    ],
)
def test_counts_of_another_batch_are_refused(counts: list[int]) -> None:
    indices = torch.tensor([[1], [1]])
    with pytest.raises(InputError, match="the counts are not those of the slots; the rows cannot"):
        permutation(indices, torch.ones(2, 1, dtype=torch.bool), torch.tensor(counts))


def test_slots_of_another_shape_are_refused() -> None:
    used = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(InputError, match=r"used has shape \[1, 2\], indices \[2, 1\]; the rows"):
        permutation(torch.zeros(2, 1, dtype=torch.int64), used, torch.tensor([2]))


def test_nothing_waits_for_the_device() -> None:
    """On the meta device there are no values: whatever asks for one raises."""
    indices = torch.zeros(6, 2, dtype=torch.int64, device="meta")
    used = torch.zeros(6, 2, dtype=torch.bool, device="meta")
    got = permutation(indices, used, torch.zeros(E, dtype=torch.int64, device="meta"))
    assert got.slots.shape == got.places.shape == (12,)


def test_a_trace_deals_rows_as_eager_code_does() -> None:
    generator = torch.Generator().manual_seed(0)
    call = torch.compile(permutation, backend="aot_eager", fullgraph=True)
    for tokens in (3, 16, 300):
        indices = torch.randint(0, E, (tokens, 3), generator=generator)
        used = torch.rand(tokens, 3, generator=generator) < 0.8
        batch = (indices, used, torch.bincount(indices[used], minlength=E))
        assert_is_the_sort(call(*batch), batch)
    torch.compiler.reset()


@pytest.mark.gpu
def test_on_a_gpu_it_is_the_stable_sort_and_captured_in_a_graph() -> None:
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(0, E, (300, 3), generator=generator)
    used = torch.rand(300, 3, generator=generator) < 0.8
    batch = (indices, used, torch.bincount(indices[used], minlength=E))
    on = tuple(each.cuda() for each in batch)
    assert_is_the_sort(permutation(*on), batch)  # compiles the kernel
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        got = permutation(*on)
    graph.replay()
    torch.cuda.synchronize()
    assert_is_the_sort(got, batch)
