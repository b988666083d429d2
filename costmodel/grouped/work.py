"""What a fused MoE layer does step by step, in operations, bytes and launches.

A layer is two grouped products (gate and up side by side, then down), between them the activation,
before each the quantisation of its input where the kernel multiplies in 8 bits, at the end the sum
over a token's experts. Products run over the rank's own assignments, padded to tiles; the rest runs
over all copies of all tokens, also of those whose experts live on other ranks.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from costprof.costmodel.grouped.points import LayerPoints
from costprof.costmodel.grouped.token_counts import TILE_ROWS

Array = npt.NDArray[np.float64]

_WEIGHT_BYTES = {"bfloat16": 2.0, "float16": 2.0, "float32": 4.0, "fp8": 1.0, "fp8_block": 1.0}
_NARROW_BYTES = {"int8": 1.0, "int4": 0.56, "mxfp4": 0.53}  # scales included
_WIDE = 2.0  # bytes of an activation that is not quantised


@dataclass(frozen=True, slots=True)
class Product:
    """One grouped product; all [n].

    Attributes:
        flops: Operations, padding to whole tiles included.
        weight_bytes: Weights of the active experts, read once.
        row_bytes: Inputs read and outputs written once.
        tile_bytes: What all tiles load, re-reads included: traffic from the L2 cache.
        tiles: Programs that have work.
        steps: Trips of one program along the inner dimension.
    """

    flops: Array
    weight_bytes: Array
    row_bytes: Array
    tile_bytes: Array
    tiles: Array
    steps: Array


@dataclass(frozen=True, slots=True)
class LayerWork:
    """All of a layer's work; all [n].

    Attributes:
        up, down: The products.
        elementwise_bytes: Of the activation and of quantising.
        reduce_bytes: Of the sum over a token's experts.
        zero_bytes: Of clearing the output that other ranks' experts leave empty.
        grid: Programs launched, with and without work.
        copies: Tokens times top-k, which are sorted by expert.
        experts: Experts of all ranks, which are counted.
        useful_flops: Operations without padding.
    """

    up: Product
    down: Product
    elementwise_bytes: Array
    reduce_bytes: Array
    zero_bytes: Array
    grid: Array
    copies: Array
    experts: Array
    useful_flops: Array

    @property
    def weight_bytes(self) -> Array:
        """Weights read, once each."""
        return self.up.weight_bytes + self.down.weight_bytes

    @property
    def flops(self) -> Array:
        """Operations of both products, padding included."""
        return self.up.flops + self.down.flops


def weight_bytes_each(precision: npt.NDArray[np.str_]) -> Array:
    """Return the bytes of one stored weight [n]; those of an unknown precision are two."""
    known = {**_WEIGHT_BYTES, **_NARROW_BYTES}
    return np.array([known.get(name, _WIDE) for name in precision.tolist()])


def layer_work(points: LayerPoints) -> LayerWork:
    """Return the work of `points`."""
    load, tiles = points.load, points.tiles
    hidden, inner, copies = points.hidden, points.inner, points.tokens * points.top_k
    narrow = np.isin(points.precision, ("fp8", "fp8_block"))
    weight = weight_bytes_each(points.precision)
    value = np.where(narrow, 1.0, _WIDE)
    which = np.searchsorted(TILE_ROWS, tiles.rows)
    row_tiles = load.tiles[np.arange(len(points)), which]

    def product(columns: Array, depth: Array) -> Product:
        across = np.ceil(columns / tiles.columns)
        padded_depth = np.ceil(depth / tiles.depth) * tiles.depth
        busy = row_tiles * across
        return Product(
            flops=2.0 * row_tiles * tiles.rows * across * tiles.columns * padded_depth,
            weight_bytes=load.active * columns * depth * weight,
            row_bytes=load.assignments * (depth * value + columns * _WIDE),
            tile_bytes=busy * padded_depth * (tiles.rows * value + tiles.columns * weight),
            tiles=busy,
            steps=padded_depth / tiles.depth,
        )

    up, down = product(2.0 * inner, hidden), product(hidden, inner)
    local = points.experts / points.ep_size
    # Launched for the worst case: every expert begins a tile that it does not fill.
    most = (copies + np.minimum(local, copies) * (tiles.rows - 1.0)) / tiles.rows
    quantised = 3.0 * narrow * (copies * inner + points.tokens * hidden)
    return LayerWork(
        up=up,
        down=down,
        elementwise_bytes=copies * 3.0 * inner * _WIDE + quantised,
        reduce_bytes=(copies + points.tokens) * hidden * _WIDE,
        zero_bytes=np.where(points.ep_size > 1, copies * hidden * _WIDE, 0.0),
        grid=most * (np.ceil(2.0 * inner / tiles.columns) + np.ceil(hidden / tiles.columns)),
        copies=copies,
        experts=points.experts,
        useful_flops=6.0 * load.assignments * hidden * inner,
    )


def taken(work: LayerWork, index: npt.NDArray[Any]) -> LayerWork:
    """Return the work at `index`."""

    def part(value: Any) -> Any:
        if isinstance(value, Product):
            return Product(**{f.name: getattr(value, f.name)[index] for f in _fields(value)})
        return value[index]

    return LayerWork(**{f.name: part(getattr(work, f.name)) for f in _fields(work)})


def _fields(value: LayerWork | Product) -> tuple[dataclasses.Field[object], ...]:
    return dataclasses.fields(value)
