"""Gradient-boosted trees as plain arrays, so that nothing has to be unpickled to evaluate them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_ROWS_AT_ONCE = 2048


@dataclass(frozen=True, slots=True)
class Trees:
    """A sum of regression trees over a constant.

    Attributes:
        base: [1] what every prediction starts from.
        roots: [trees] first node of each.
        feature: [nodes] column compared; -1 at a leaf.
        threshold: [nodes] goes left where the feature is at most this.
        left, right: [nodes] where to go on.
        value: [nodes] what a leaf adds.
    """

    base: Array
    roots: npt.NDArray[np.int32]
    feature: npt.NDArray[np.int16]
    threshold: Array
    left: npt.NDArray[np.int32]
    right: npt.NDArray[np.int32]
    value: npt.NDArray[np.float32]

    def predict(self, x: Array) -> Array:
        """Return predictions [n] for `x` [n, features], which holds no NaN."""
        parts = [
            self._predict(x[start : start + _ROWS_AT_ONCE])
            for start in range(0, len(x), _ROWS_AT_ONCE)
        ]
        return np.concatenate(parts) if parts else np.empty(0)

    def _predict(self, x: Array) -> Array:
        node = np.broadcast_to(self.roots, (len(x), len(self.roots))).copy()
        rows = np.arange(len(x))[:, None]
        while True:
            feature = self.feature[node]
            inner = feature >= 0
            if not inner.any():
                total: Array = self.base[0] + self.value[node].sum(axis=1, dtype=np.float64)
                return total
            goes_left = x[rows, feature] <= self.threshold[node]
            child = np.where(goes_left, self.left[node], self.right[node])
            node = np.where(inner, child, node)

    def to_arrays(self, prefix: str) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays by name, `prefix` before each."""
        return {f"{prefix}.{field.name}": getattr(self, field.name) for field in fields(self)}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], prefix: str) -> Trees:
        """Read what `to_arrays` wrote.

        Raises:
            KeyError: an array is missing.
        """
        return cls(**{field.name: arrays[f"{prefix}.{field.name}"] for field in fields(cls)})
