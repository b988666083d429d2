"""Members of a kernel's tile space, for sweeps that measure several tile configs.

A kernel may have the attribute `tile_space`, each tile parameter's choices, and `tile_allowed`,
which says what members of their product can work for an expert class.
"""

from __future__ import annotations

import importlib
import itertools
import random
from typing import Any

from costprof.core.expert import ExpertClass
from costprof.profiler.importing import current_folder_importable

_SEED = 20_240


def tile_space(kernel: str, expert: ExpertClass) -> list[dict[str, int]]:
    """Return the tile configs that the importable `kernel` allows for `expert`, in a fixed order.

    Empty for a kernel without a tile space.
    """
    module, function = kernel.split(":")
    with current_folder_importable():
        found = getattr(importlib.import_module(module), function)
    space: dict[str, tuple[int, ...]] = getattr(found, "tile_space", {})
    if not space:
        return []
    allowed: Any = getattr(found, "tile_allowed", lambda config, expert: True)
    members = (
        dict(zip(space, choice, strict=True)) for choice in itertools.product(*space.values())
    )
    return [config for config in members if allowed(config, expert)]


def sample_tiles(kernel: str, expert: ExpertClass, number: int) -> list[dict[str, int]]:
    """Return up to `number` different members of the tile space, the same ones every time.

    They are drawn at random: good configs and bad ones, as a model of the space needs them.
    """
    space = tile_space(kernel, expert) if number else []
    return random.Random(_SEED).sample(space, min(number, len(space)))
