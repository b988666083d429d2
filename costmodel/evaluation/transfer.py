"""How far off are prices carried to another device, without and with a few measurements there?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from costprof.costmodel.devices import DeviceSpec
from costprof.costmodel.evaluation.baselines import roofline_us
from costprof.costmodel.evaluation.columns import frame_of, layer_columns, quantile_columns
from costprof.costmodel.grouped.carry import Carried, Source, carry
from costprof.costmodel.grouped.fit_transfer import fit_correction
from costprof.costmodel.grouped.model import LayerPrediction, Measured
from costprof.costmodel.grouped.price import layer_keys, positions_among
from costprof.costmodel.grouped.transfer import corrected, fresh
from costprof.costmodel.grouped.transfer_choice import choose_targets
from costprof.costmodel.grouped.unknown_methods import with_known_methods
from costprof.costmodel.grouped.work import layer_work

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

FOLDS = 5


@dataclass(frozen=True)
class TransferTrial:
    """Layers measured on a target, and what the source says of them.

    Attributes:
        source: Its model, spec and measured layers.
        spec: The target's.
        target: What was measured there, [n].
        carried: The same layers, carried over.
        identity_us, identity_mj: What the source read of them; NaN where it did not: [n].
    """

    source: Source
    spec: DeviceSpec
    target: Measured
    carried: Carried
    identity_us: Array
    identity_mj: Array

    @classmethod
    def of(cls, source: Source, spec: DeviceSpec, target: Measured) -> TransferTrial:
        """Carry the layers of `target` over from `source`."""
        identity_us = np.full(len(target.points), np.nan)
        identity_mj = identity_us.copy()
        if source.measured is not None:
            known = with_known_methods(target.points, source.model)
            at = positions_among(layer_keys(known), layer_keys(source.measured.points))
            both, read = at >= 0, source.measured.take(at[at >= 0])
            identity_us[both] = read.latency_us
            identity_mj[both] = read.power_w * read.latency_us * 1e-3
        carried = carry(source, target.points, spec)
        return cls(source, spec, target, carried, identity_us, identity_mj)

    def __len__(self) -> int:
        return len(self.carried)

    def take(self, index: npt.NDArray[Any]) -> TransferTrial:
        """Return the trial of the layers at `index` (positions or a mask)."""
        return TransferTrial(
            self.source,
            self.spec,
            self.target.take(index),
            self.carried.take(index),
            self.identity_us[index],
            self.identity_mj[index],
        )

    @property
    def in_both(self) -> npt.NDArray[np.bool_]:
        """Which of the layers the source measured, too: [n]."""
        return np.isfinite(self.identity_us)

    def chosen(self, number: int, *, seed: int = 0) -> Index:
        """Return which `number` layers to measure on the target first."""
        scales = fresh(self.source.spec, self.spec).scales
        return choose_targets(self.carried, number, scales, seed=seed)

    def prices(self, given: Index, wanted: Index) -> LayerPrediction:
        """Return the prices of the layers at `wanted` where those at `given` were measured."""
        correction = fresh(self.source.spec, self.spec)
        if len(given):
            read = self.target.take(given)
            correction = fit_correction(
                self.carried.take(given), read.latency_us, read.power_w, correction
            )
        return corrected(self.carried.take(wanted), self.spec, correction)

    def frame(self, given: Index, split: str) -> pa.Table:
        """Return the layers not at `given` as a frame of held-out layers, as `frame` makes them.

        Its baselines are `identity_us` and `identity_mj`, NULL where the source did not measure,
        `roofline_scaled_us`, the same times the ratio of both rooflines, and `constant_tdp_mj`.
        """
        rest = np.setdiff1d(np.arange(len(self)), given)
        return self._frame_of(rest, self.prices(given, rest), split)

    def left_out(self) -> pa.Table | None:
        """Return the frame of all layers, each priced without its fold; None of fewer than two."""
        if len(self) < 2:
            return None
        order = np.random.default_rng(0).permutation(len(self))
        frames = []
        for held in _folds(order):
            rest = np.setdiff1d(order, held)
            frames.append(self._frame_of(held, self.prices(rest, held), "left out"))
        return pa.concat_tables(frames)

    def _frame_of(self, at: Index, found: LayerPrediction, split: str) -> pa.Table:
        own, read = self.take(at), self.target.take(at)
        points, work = read.points, layer_work(read.points)
        limit_w = self.spec.power_limit_w
        faster = roofline_us(points, work, self.spec) / roofline_us(points, work, self.source.spec)
        columns: dict[str, Any] = {
            "split": [split] * len(points),
            **layer_columns(read, work, limit_w),
            **quantile_columns("latency_us", found.latency_us),
            **quantile_columns("energy_mj", found.energy_mj),
            "power_w_p50": found.power_w,
            "carried_us": np.exp(own.carried.log_us),
            "identity_us": own.identity_us,
            "roofline_scaled_us": own.identity_us * faster,
            "identity_mj": own.identity_mj,
            "tier": ["transferred"] * len(points),
        }
        return frame_of(columns)


def _folds(order: Index) -> Iterator[Index]:
    for first in range(min(FOLDS, len(order))):
        yield np.sort(order[first::FOLDS])
