"""The MoE layers to price, column by column."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from costprof.costmodel.grouped.tile_rules import Tiles, rule_of_thumb
from costprof.costmodel.grouped.token_counts import RankLoad, rank_load

Array = npt.NDArray[np.float64]
Strings = npt.NDArray[np.str_]


@dataclass(frozen=True)
class LayerPoints:
    """n whole MoE layers, each as one rank of them runs; all arrays [n].

    Attributes:
        framework: Library and version, for example `vllm 0.22.0`.
        kernel: What computes the layer.
        precision: Storage of the weights: bfloat16, fp8, fp8_block, int4, mxfp4, ...
        hidden: Width of a token.
        inner: Width of an expert's inside, the shard's own.
        top_k: Experts a token chooses.
        experts: Experts of all ranks.
        ep_size, tp_size: Expert- and tensor-parallel ranks.
        tokens: Tokens of the batch over all ranks.
        distribution: How tokens choose experts, by name.
    """

    framework: Strings
    kernel: Strings
    precision: Strings
    hidden: Array
    inner: Array
    top_k: Array
    experts: Array
    ep_size: Array
    tp_size: Array
    tokens: Array
    distribution: Strings

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def of_columns(cls, columns: Mapping[str, Sequence[Any]]) -> LayerPoints:
        """Return the points of `columns` by their attributes' names."""
        texts = ("framework", "kernel", "precision", "distribution")
        arrays: dict[str, Any] = {
            field.name: np.asarray(columns[field.name], dtype=str if field.name in texts else float)
            for field in dataclasses.fields(cls)
        }
        return cls(**arrays)

    def take(self, index: npt.NDArray[Any]) -> LayerPoints:
        """Return the points at `index` (positions or a mask)."""
        taken = LayerPoints(
            **{f.name: getattr(self, f.name)[index] for f in dataclasses.fields(self)}
        )
        return taken.with_load(self.load.take(index)) if "load" in self.__dict__ else taken

    def with_load(self, load: RankLoad) -> LayerPoints:
        """Return the points with a `load` of which more is known than the routing's name."""
        loaded = dataclasses.replace(self)
        loaded.__dict__["load"] = load
        return loaded

    @cached_property
    def load(self) -> RankLoad:
        """What the rank gets of each batch."""
        return rank_load(
            self.tokens.astype(np.int64),
            self.experts.astype(np.int64),
            self.top_k.astype(np.int64),
            self.ep_size.astype(np.int64),
            self.distribution.tolist(),
        )

    @cached_property
    def tiles(self) -> Tiles:
        """Tiles the kernel is taken to use."""
        return rule_of_thumb(self.precision, self.tokens)

    @cached_property
    def method(self) -> Strings:
        """What computes it and in which precision."""
        return _joined(self.framework, self.kernel, self.precision)

    @cached_property
    def shape(self) -> Strings:
        """The model's layer, whatever its shard, precision and kernel."""
        sizes = (self.hidden, self.inner * self.tp_size, self.top_k, self.experts)
        return _joined(*(size.astype(np.int64).astype(str) for size in sizes))

    @cached_property
    def group(self) -> Strings:
        """Layers that differ in shard, routing and tokens alone."""
        return _joined(self.shape, self.method)

    @cached_property
    def curve(self) -> Strings:
        """Layers that differ in tokens alone."""
        shard = (self.tp_size, self.ep_size)
        texts = (size.astype(np.int64).astype(str) for size in shard)
        return _joined(self.group, *texts, self.distribution)


def _joined(*columns: Strings) -> Strings:
    return np.array(["|".join(each) for each in zip(*columns, strict=True)], dtype=str)
