"""The tile space a kernel names."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from costprof.core.errors import InputError
from costprof.core.expert import ExpertClass
from costprof.profiler.tiles import kernel_tiles

KERNELS = """
def plain(x, w1): ...
def free(x, w1): ...
free.tile_space = {"BLOCK_M": (16, 32), "num_warps": (4, 8)}
def choosy(x, w1): ...
choosy.tile_space = free.tile_space
choosy.tile_allowed = lambda config, expert: config["BLOCK_M"] < expert.d_ff
def frugal(x, w1): ...
frugal.tile_space = free.tile_space
def allowed(config, expert, *, shared_bytes=10**6):
    return config["BLOCK_M"] * config["num_warps"] * 1024 <= shared_bytes
frugal.tile_allowed = allowed
def text(x, w1): ...
text.tile_space = {"BLOCK_M": ("16",)}
def empty(x, w1): ...
empty.tile_space = {"BLOCK_M": ()}
"""
EXPERT = ExpertClass(d_model=64, d_ff=32, dtype="float32")


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiled_kernels_for_test.py").write_text(KERNELS)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_the_space_is_the_product_less_what_is_not_allowed() -> None:
    assert kernel_tiles("tiled_kernels_for_test:plain", EXPERT) is None
    free = kernel_tiles("tiled_kernels_for_test:free", EXPERT)
    assert free is not None
    assert len(free.configs) == 4
    choosy = kernel_tiles("tiled_kernels_for_test:choosy", EXPERT)
    assert choosy is not None
    assert choosy.choices == free.choices
    assert choosy.configs == (
        {"BLOCK_M": 16, "num_warps": 4},
        {"BLOCK_M": 16, "num_warps": 8},
    )


def test_a_kernel_that_asks_is_told_the_shared_memory_of_the_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def found(kernel: str) -> int:
        tiles = kernel_tiles(f"tiled_kernels_for_test:{kernel}", EXPERT)
        assert tiles is not None
        return len(tiles.configs)

    assert found("frugal") == 4, "without a GPU it assumes what it likes"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 1)
    gpus = [SimpleNamespace(), SimpleNamespace(shared_memory_per_block_optin=99 * 1024)]
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: gpus[index])
    assert found("frugal") == 1
    assert found("choosy") == 2, "asked by config and expert alone, as ever"
    gpus[1] = SimpleNamespace()
    assert found("frugal") == 4, "a torch that does not say"


@pytest.mark.parametrize("name", ["text", "empty"])
def test_a_space_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"tile_space of kernel 'tiled_kernels_for_test:{name}'"):
        kernel_tiles(f"tiled_kernels_for_test:{name}", EXPERT)


def test_a_space_of_which_nothing_is_allowed_is_refused() -> None:
    tiny = ExpertClass(d_model=8, d_ff=8, dtype="float32")
    with pytest.raises(InputError, match="allows no config of its tile space for d_model 8, d_ff"):
        kernel_tiles("tiled_kernels_for_test:choosy", tiny)
