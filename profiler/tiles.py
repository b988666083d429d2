"""The tile space of a kernel: which configs there are, and which can work for an expert."""

from __future__ import annotations

import inspect
import itertools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from costprof.core.errors import InputError
from costprof.core.expert import ExpertClass
from costprof.profiler.kernels import import_kernel

_SEED = 20_240


@dataclass(frozen=True, slots=True)
class KernelTiles:
    """`choices` of each tile parameter, and the `configs` of their product that can work."""

    choices: dict[str, tuple[int, ...]]
    configs: tuple[dict[str, int], ...]


def kernel_tiles(name: str, expert: ExpertClass) -> KernelTiles | None:
    """Return the tile space of kernel `name` for `expert`; None where the kernel names none.

    A kernel names it by two attributes: `tile_space`, each parameter's choices, and, if not all of
    their product can work, `tile_allowed(config, expert) -> bool`. If that takes a keyword
    `shared_bytes`, it gets the shared memory a thread block may have on the GPU that is here.

    Raises:
        InputError: the kernel cannot be imported, its space is no mapping of whole numbers, or no
            config is allowed.
    """
    function = import_kernel(name)
    space = getattr(function, "tile_space", None)
    if space is None:
        return None
    choices = _choices(name, space)
    allowed = _allowed(function)
    configs = tuple(
        config
        for values in itertools.product(*choices.values())
        if (config := dict(zip(choices, values, strict=True))) and allowed(dict(config), expert)
    )
    if not configs:
        raise InputError(
            f"kernel {name!r} allows no config of its tile space for d_model {expert.d_model}, "
            f"d_ff {expert.d_ff}",
            "there is nothing to search",
            "give configs in the sweep file, or mend the kernel's tile_allowed",
        )
    return KernelTiles(choices, configs)


def _allowed(function: Any) -> Callable[[dict[str, int], ExpertClass], bool]:
    allowed = getattr(function, "tile_allowed", None)
    if allowed is None:
        return lambda config, expert: True
    shared_bytes = _shared_bytes_per_block()
    if shared_bytes is None or "shared_bytes" not in inspect.signature(allowed).parameters:
        return lambda config, expert: bool(allowed(config, expert))
    return lambda config, expert: bool(allowed(config, expert, shared_bytes=shared_bytes))


def _shared_bytes_per_block() -> int | None:
    """What a thread block may ask for on torch's current GPU; None where there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties: Any = torch.cuda.get_device_properties(torch.cuda.current_device())
    found = getattr(properties, "shared_memory_per_block_optin", None)  # older versions lack it
    return None if found is None else int(found)


def sample_tiles(name: str, expert: ExpertClass, number: int) -> list[dict[str, int]]:
    """Return up to `number` different configs of a kernel's tile space, the same ones every time.

    They are drawn at random: good configs and bad ones, as a model of the space needs them. None
    for a kernel without a tile space.

    Raises:
        InputError: see `kernel_tiles`.
    """
    tiles = kernel_tiles(name, expert) if number else None
    if tiles is None:
        return []
    return random.Random(_SEED).sample(tiles.configs, min(number, len(tiles.configs)))


def _choices(name: str, space: Any) -> dict[str, tuple[int, ...]]:
    made: dict[str, tuple[int, ...]] = {}
    if isinstance(space, Mapping):
        made = {str(key): tuple(values) for key, values in space.items()}
    whole = all(type(value) is int for values in made.values() for value in values)
    if not made or not whole or not all(made.values()):
        raise InputError(
            f"tile_space of kernel {name!r} is {space!r:.80}",
            "there is nothing to search",
            "map each tile parameter to its choices, as whole numbers",
        )
    return made
