"""Boost trees with scikit-learn and keep them as arrays."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingRegressor

from costprof.costmodel.grouped.trees import Trees

Array = npt.NDArray[np.float64]

Loss = Literal["squared_error", "absolute_error"]

_MOST_TREES, _FEWEST_TREES = 300, 60


def fit_trees(
    x: Array, y: Array, *, loss: Loss = "squared_error", weight: Array | None = None
) -> Trees:
    """Return trees fitted to `y` [n] over `x` [n, features], rows weighing `weight` [n].

    The same data give the same trees.
    """
    model = HistGradientBoostingRegressor(
        loss=loss,
        max_iter=min(_MOST_TREES, max(_FEWEST_TREES, len(y) // 12)),
        learning_rate=0.08,
        max_leaf_nodes=31,
        min_samples_leaf=min(20, max(1, len(y) // 40)),
        l2_regularization=1.0,
        early_stopping=False,
        random_state=0,
    ).fit(x, y, sample_weight=weight)
    # One tree an iteration. The nodes are scikit-learn's own record; a test holds that reading
    # them this way predicts what it predicts.
    nodes = [predictors[0].nodes for predictors in model._predictors]
    starts = np.cumsum([0, *(len(each) for each in nodes)])
    every = np.concatenate(nodes)
    offset = np.repeat(starts[:-1], [len(each) for each in nodes])
    leaf = every["is_leaf"].astype(bool)
    return Trees(
        base=np.asarray(model._baseline_prediction, dtype=np.float64).reshape(1),
        roots=starts[:-1].astype(np.int32),
        feature=np.where(leaf, -1, every["feature_idx"]).astype(np.int16),
        threshold=every["num_threshold"].astype(np.float64),
        left=np.where(leaf, 0, every["left"] + offset).astype(np.int32),
        right=np.where(leaf, 0, every["right"] + offset).astype(np.int32),
        value=np.where(leaf, every["value"], 0.0).astype(np.float32),
    )
