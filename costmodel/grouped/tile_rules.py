"""Which tiles a serving framework's MoE kernel takes where nobody tuned it.

The rules of thumb of vLLM since 0.17: one for weights quantised by blocks, one for its 4-bit
kernels, one for the rest. Latency jumps where a rule changes tiles, so the model must see them. A
kernel that follows other rules is priced by the same ones: they then only name regions of batch
size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tiles:
    """Rows, columns and depth of a tile, and pipeline stages and warps of its program; all [n]."""

    rows: Array
    columns: Array
    depth: Array
    stages: Array
    warps: Array

    @property
    def regime(self) -> Array:
        """One number for each combination: [n]."""
        known = np.stack([self.rows, self.columns, self.depth, self.stages, self.warps], axis=1)
        numbers: Array = known @ np.array([1.0, 1e3, 1e6, 1e9, 1e10])
        return numbers


def rule_of_thumb(precision: npt.NDArray[np.str_], tokens: Array) -> Tiles:
    """Return the tiles for batches of `tokens` [n] in `precision` [n]."""
    blocks, four_bits = precision == "fp8_block", np.isin(precision, ("int4", "mxfp4"))

    def by(general: Array, of_blocks: Array, of_four_bits: Array) -> Array:
        return np.select([blocks, four_bits], [of_blocks, of_four_bits], general)

    def steps(limits: tuple[int, ...], values: tuple[int, ...]) -> Array:
        return np.asarray(values, dtype=np.float64)[np.searchsorted(limits, tokens)]

    def always(value: float) -> Array:
        return np.full(tokens.shape, value)

    deep = np.where(precision == "fp8", 128.0, steps((64,), (128, 64)))
    return Tiles(
        rows=by(
            steps((32, 96, 512), (16, 32, 64, 128)),
            steps((64,), (16, 64)),
            steps((20, 40), (16, 32, 64)),
        ),
        columns=by(steps((64,), (64, 128)), always(128), always(64)),
        depth=by(deep, always(128), always(64)),
        stages=by(steps((32,), (4, 3)), always(3), always(3)),
        warps=by(steps((128,), (4, 8)), always(4), always(4)),
    )
