"""What a group's own measurements say of its other layers.

A Gaussian process over the layers of one group (same model layer, kernel and precision), on what
the physical and learned parts leave: log(measured / predicted). Its covariance says which layers
resemble each other (Rasmussen and Williams, 2006, chapter 4 and 5.4.3): all of the group a little,
those of a near token count, of a like shard, under the same tiles more, those of one curve most.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve

from costprof.costmodel.grouped.points import LayerPoints

Array = npt.NDArray[np.float64]

_DRAWS_MEASURED = 5.0  # routings a public measurement averages over
_ALIKE_SKEWS = 0.8  # of two unbalanced routings
_JITTER = 1e-9  # share of the prior variance that brings a covariance back from rounding


@dataclass(frozen=True, slots=True)
class FieldScales:
    """Standard deviations of log latency, and the lengths over which they change.

    Attributes:
        group_std, shard_std, curve_std: What all layers of a group, of like shards and of one
            curve share; `routing_std` those of one routing, `tiles_std` under the same tiles.
        smooth_std: What layers of near token counts share over the whole group.
        group_octaves, shard_octaves, curve_octaves, tiles_octaves: Lengths over log2 tokens.
        shard_doublings: Length over log2 of the shard sizes.
        noise_std: Of one measurement.
        draw_factor: How much of the spread between drawn routings is noise of the measurement.
    """

    group_std: float = 0.02
    smooth_std: float = 0.02
    group_octaves: float = 3.0
    shard_std: float = 0.04
    shard_octaves: float = 2.0
    shard_doublings: float = 3.0
    curve_std: float = 0.02
    curve_octaves: float = 1.5
    routing_std: float = 0.015
    same_tiles_std: float = 0.02
    tiles_std: float = 0.02
    tiles_octaves: float = 2.0
    noise_std: float = 0.01
    draw_factor: float = 0.5

    def prior_variance(self) -> float:
        """Variance of a layer none of whose group was measured, measurement noise apart."""
        names = ("group", "smooth", "shard", "curve", "routing", "same_tiles", "tiles")
        return float(sum(getattr(self, f"{name}_std") ** 2 for name in names))

    def noise_variance(self, spread: Any) -> Any:
        """Variance of a measurement whose routings spread the work by `spread` [n]."""
        return self.noise_std**2 + (self.draw_factor * spread) ** 2 / _DRAWS_MEASURED


@dataclass(frozen=True, slots=True)
class Sites:
    """Where layers lie, as the covariance sees them; all [n]."""

    octaves: Array
    tp: Array
    ep: Array
    skewed: Array
    routing: npt.NDArray[np.int64]
    regime: Array
    spread: Array

    @classmethod
    def of_points(cls, points: LayerPoints) -> Sites:
        """Return the sites of `points`."""
        names = points.distribution.tolist()
        known = {name: at for at, name in enumerate(sorted({"balanced", *names}))}
        return cls(
            octaves=np.log2(points.tokens),
            tp=np.log2(points.tp_size),
            ep=np.log2(points.ep_size),
            skewed=np.array([name != "balanced" for name in names], dtype=np.float64),
            routing=np.array([known[name] for name in names], dtype=np.int64),
            regime=points.tiles.regime,
            spread=points.load.spread,
        )

    def take(self, index: npt.NDArray[np.int64]) -> Sites:
        """Return the sites at `index`."""
        return Sites(**{f.name: getattr(self, f.name)[index] for f in dataclasses.fields(self)})


@dataclass(frozen=True, slots=True)
class Apart:
    """How far each of n sites lies from each of m: [n, m]."""

    octaves: Array
    doublings: Array
    same_shard: Array
    same_routing: Array
    alike_routing: Array
    same_tiles: Array

    @classmethod
    def between(cls, a: Sites, b: Sites) -> Apart:
        """Return the distances between sites of one group."""
        doublings = np.hypot(a.tp[:, None] - b.tp, a.ep[:, None] - b.ep)
        same = (a.routing[:, None] == b.routing).astype(np.float64)
        both = a.skewed[:, None] * b.skewed
        return cls(
            octaves=np.abs(a.octaves[:, None] - b.octaves),
            doublings=doublings,
            same_shard=(doublings < 1e-9).astype(np.float64),
            same_routing=same,
            alike_routing=np.maximum(same, _ALIKE_SKEWS * both),
            same_tiles=(a.regime[:, None] == b.regime).astype(np.float64),
        )


def covariance(apart: Apart, s: FieldScales, exp: Callable[[Any], Any] = np.exp) -> Any:
    """Return the covariance of log residuals [n, m], measurement noise apart.

    Written in arithmetic that arrays and tensors share; `exp` is theirs.
    """

    def matern(distance: Any) -> Any:
        scaled = 3.0**0.5 * distance
        return (1.0 + scaled) * exp(-scaled)

    near_shard = exp(-apart.doublings / s.shard_doublings)
    smooth = matern(apart.octaves / s.group_octaves)
    return (
        s.group_std**2
        + smooth * (s.smooth_std**2 + s.routing_std**2 * apart.alike_routing)
        + s.shard_std**2 * matern(apart.octaves / s.shard_octaves) * near_shard
        + apart.same_tiles
        * near_shard
        * (s.same_tiles_std**2 + s.tiles_std**2 * matern(apart.octaves / s.tiles_octaves))
        + s.curve_std**2
        * matern(apart.octaves / s.curve_octaves)
        * apart.same_shard
        * (0.5 + 0.5 * apart.same_routing)
    )


class Field:
    """The process of one group, given its measured residuals."""

    def __init__(self, sites: Sites, residual: Array, scales: FieldScales) -> None:
        """Condition on `residual` [n] = log(measured / predicted) at `sites`."""
        self._sites, self._residual, self._scales = sites, residual, scales
        total = covariance(Apart.between(sites, sites), scales)
        total[np.diag_indices_from(total)] += scales.noise_variance(sites.spread)
        try:
            self._factor = cho_factor(total, lower=True)
        except np.linalg.LinAlgError:  # sites too alike for so little noise
            total[np.diag_indices_from(total)] += _JITTER * scales.prior_variance()
            self._factor = cho_factor(total, lower=True)

    def predict(self, sites: Sites) -> tuple[Array, Array]:
        """Return mean and variance [m] of log(measured / predicted) at `sites`, noise included."""
        cross = covariance(Apart.between(sites, self._sites), self._scales)
        mean = cross @ cho_solve(self._factor, self._residual)
        explained = np.einsum("ij,ji->i", cross, cho_solve(self._factor, cross.T))
        variance = self._scales.prior_variance() - explained
        noise = self._scales.noise_variance(sites.spread)
        return mean, np.maximum(variance, 0.0) + noise

    def left_out(self, parts: npt.NDArray[np.int64]) -> tuple[Array, Array]:
        """Return mean and variance [n] at each site had its whole part not been measured.

        By the partitioned inverse (Rasmussen and Williams, 2006, section 5.4.2, for more than one
        point at a time); `parts` [n] numbers them.
        """
        inverse = cho_solve(self._factor, np.eye(len(self._residual)))
        weighted = inverse @ self._residual
        mean, variance = np.empty_like(weighted), np.empty_like(weighted)
        for part in np.unique(parts):
            at = np.flatnonzero(parts == part)
            block = np.linalg.inv(inverse[np.ix_(at, at)])
            mean[at] = self._residual[at] - block @ weighted[at]
            variance[at] = np.diag(block)
        return mean, variance
