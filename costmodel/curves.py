"""The rows of one class as curves over tokens: one a tile config, the cheapest wins."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from costprof.core.errors import TableError
from costprof.core.expert import ExpertClass
from costprof.costmodel.rows import CLASS_FIELDS, worst_tier

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Rows of one (class, config), ascending in tokens. `columns` maps names to values [points]."""

    tokens: Array
    columns: dict[str, Array]
    tier: tuple[str, ...]
    energy_source: tuple[str, ...]
    config: Mapping[str, int] = field(default_factory=dict)

    def at(self, name: str, tokens: npt.ArrayLike) -> Array:
        """Return column `name` at `tokens`, of the same shape.

        Linear between rows and along the last segment beyond them (power stays as in the last
        row); below the first row, its value (a small batch reads the same weights); 0 at 0 tokens.
        """
        asked = np.asarray(tokens, dtype=np.float64)
        values = self.columns[name]
        result = np.interp(asked, self.tokens, values)
        if name != "power_w":
            beyond = np.maximum(asked - self.tokens[-1], 0.0)
            result = result + beyond * self._last_slope(values)
        return np.where(asked > 0, result, 0.0)

    def tier_at(self, tokens: int) -> str:
        """Return how the value at `tokens` came about; see `costprof.costmodel.rows.Tier`."""
        position = int(np.searchsorted(self.tokens, tokens))
        if position == len(self.tokens):
            return worst_tier("extrapolated", self.tier[-1])
        if self.tokens[position] == tokens:
            return self.tier[position]
        if position == 0:
            return worst_tier("extrapolated", self.tier[0])
        return worst_tier("interpolated", *self.tier[position - 1 : position + 1])

    def energy_source_at(self, tokens: int) -> str:
        """Return where the energy at `tokens` comes from: that of the nearest row."""
        return self.energy_source[int(np.abs(self.tokens - tokens).argmin())]

    def _last_slope(self, values: Array) -> float:
        if len(values) == 1:
            # One point says nothing of the slope; proportional is the cautious guess beyond it.
            return float(values[0] / self.tokens[0])
        rise = (values[-1] - values[-2]) / (self.tokens[-1] - self.tokens[-2])
        # Latency may dip locally, but a larger batch never ends up free.
        return float(max(rise, 0.0))


@dataclass(frozen=True)
class ClassCurves:
    """All curves of one class; the config of least median latency is the one that prices.

    At a measured token count the configs measured there compete. Elsewhere those that were measured
    on both sides do (beyond the ends: at the last two counts), provided the best of the nearest
    count (by ratio) is among them; if not, that one is taken. A search measures few configs at each
    count, and none must win by an extrapolation. `kernel` is the `module:function` measured.
    """

    expert: ExpertClass
    curves: tuple[Curve, ...]
    kernel: str = ""

    @cached_property
    def max_tokens(self) -> int:
        """Largest token count of any row."""
        return int(max(curve.tokens[-1] for curve in self.curves))

    def best(self, tokens: int) -> Curve:
        """Return the curve of least median latency at `tokens`."""
        return self.curves[int(self.best_index(np.array([float(tokens)]))[0])]

    def best_index(self, tokens: Array, energy_weight: float = 0.0) -> npt.NDArray[np.int64]:
        """Return the position in `curves` of the best config at each of `tokens` [n].

        Best is least `(1 - w) · latency / least latency + w · energy / least energy` with medians
        and `w` = `energy_weight`; of equals the first.
        """
        asked = np.asarray(tokens, dtype=np.float64)
        grid, measured = self._measured
        if not len(grid):
            everywhere = np.ones((len(self.curves), len(asked)), dtype=bool)
            return self._cheapest(asked, everywhere, energy_weight)
        nearest, other = _neighbours(asked, grid)
        there = self._cheapest(grid[nearest], measured[:, nearest], energy_weight)
        both = measured[:, nearest] & measured[:, other]
        between = both[there, np.arange(len(asked))]
        compared = self._cheapest(asked, both | ~between, energy_weight)
        return np.where(between, compared, there)

    def _cheapest(
        self, tokens: Array, compete: npt.NDArray[np.bool_], energy_weight: float
    ) -> npt.NDArray[np.int64]:
        """Return the cheapest curve at each of `tokens` [n] of those that `compete` [curves, n]."""
        cost = np.zeros(compete.shape)
        for name, weight in (
            ("latency_us_p50", 1.0 - energy_weight),
            ("energy_mj_p50", energy_weight),
        ):
            if weight > 0:
                each = np.stack([curve.at(name, tokens) for curve in self.curves])
                least = np.where(compete, each, np.inf).min(axis=0)
                cost += weight * each / np.maximum(least, np.finfo(np.float64).tiny)
        return np.asarray(np.where(compete, cost, np.inf).argmin(axis=0), dtype=np.int64)

    def dense(self, max_tokens: int) -> Array:
        """Return median (latency_us, energy_mj) at 0 … `max_tokens`: [max_tokens + 1, 2]."""
        tokens = np.arange(max_tokens + 1)
        latency = np.stack([curve.at("latency_us_p50", tokens) for curve in self.curves])
        energy = np.stack([curve.at("energy_mj_p50", tokens) for curve in self.curves])
        best = self.best_index(tokens.astype(np.float64))
        return np.stack([latency[best, tokens], energy[best, tokens]], axis=1)

    @cached_property
    def _measured(self) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Token counts measured under any config [m], and which config was where: [curves, m]."""
        each = [curve.tokens[np.array(curve.tier) == "measured"] for curve in self.curves]
        grid = np.unique(np.concatenate(each))
        return grid, np.stack([np.isin(grid, tokens) for tokens in each])


def _neighbours(tokens: Array, grid: Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the nearest of `grid` by ratio, and the one on the other side, for `tokens` [n].

    Beyond an end the other is the last but one; on the grid, and in a grid of one, the nearest.
    """
    apart = np.log2(np.maximum(tokens, 1.0))[:, None] - np.log2(grid)[None, :]
    nearest = np.abs(apart).argmin(axis=1)
    side = np.sign(apart[np.arange(len(tokens)), nearest]).astype(np.int64)
    other = nearest + side
    outside = (other < 0) | (other >= len(grid))
    return nearest, np.where(outside, nearest - side, other).clip(0, len(grid) - 1)


_NUMBERS = (
    "latency_us_p05",
    "latency_us_p50",
    "latency_us_p95",
    "energy_mj_p05",
    "energy_mj_p50",
    "energy_mj_p95",
    "power_w",
    "temp_rise_c",
    "bytes",
    "flops",
)


def read_classes(rows: pa.Table, class_ids: tuple[str, ...]) -> dict[str, ClassCurves]:
    """Return the curves of each class in `class_ids`.

    Raises:
        TableError: a class has no rows, or rows without latency or energy.
    """
    # An empty array would be of type null without one named.
    wanted_ids = pa.array(sorted(set(class_ids)), pa.string())
    wanted = rows.filter(pc.is_in(rows["class_id"], value_set=wanted_ids))
    wanted = wanted.sort_by([(name, "ascending") for name in ("class_id", "config", "tokens")])
    columns: dict[str, Any] = {
        name: wanted[name].to_numpy().astype(np.float64) for name in ("tokens", *_NUMBERS)
    }
    for name in ("class_id", "config", "kernel", "tier", "energy_source", *CLASS_FIELDS):
        columns[name] = wanted[name].to_pylist()
    grouped: dict[str, dict[str, list[int]]] = {}
    for row, class_id in enumerate(columns["class_id"]):
        grouped.setdefault(class_id, {}).setdefault(columns["config"][row], []).append(row)
    for class_id in class_ids:
        if class_id not in grouped:
            raise TableError(
                f"the table has no rows of class {class_id}",
                "an expert of the MoE cannot be priced",
                "fit a dataset in which that class was measured",
            )
    return {
        class_id: ClassCurves(
            expert=_expert(columns, next(iter(configs.values()))[0]),
            curves=tuple(_curve(columns, members, class_id) for members in configs.values()),
            kernel=columns["kernel"][next(iter(configs.values()))[0]] or "",
        )
        for class_id, configs in grouped.items()
    }


def _expert(columns: dict[str, Any], row: int) -> ExpertClass:
    return ExpertClass(**{name: columns[name][row] for name in CLASS_FIELDS})


def _curve(columns: dict[str, Any], members: list[int], class_id: str) -> Curve:
    curve = Curve(
        tokens=columns["tokens"][members],
        columns={name: columns[name][members] for name in _NUMBERS},
        tier=tuple(columns["tier"][row] for row in members),
        energy_source=tuple(columns["energy_source"][row] for row in members),
        config=_config(columns["config"][members[0]], class_id),
    )
    priced = [curve.columns[name] for name in ("latency_us_p50", "energy_mj_p50")]
    if not all(np.isfinite(values).all() for values in priced):
        raise TableError(
            f"rows of class {class_id} have no latency or no energy",
            "its experts cannot be priced",
            "fit the dataset again",
        )
    if (curve.tokens < 1).any() or (np.diff(curve.tokens) <= 0).any():
        raise TableError(
            f"rows of class {class_id} repeat a token count or hold one below 1",
            "its experts cannot be priced",
            "fit the dataset again",
        )
    return curve


def _config(text: str | None, class_id: str) -> dict[str, int]:
    try:
        values = json.loads(text or "{}")
        return {str(name): int(value) for name, value in values.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise TableError(
            f"a row of class {class_id} has the config {text!r:.60}",
            "its tile parameters cannot be read",
            "fit the dataset again",
        ) from error
