"""Which features predict a cost best: rank correlation, and what is lost without each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.inspection import permutation_importance
from sklearn.model_selection import GroupKFold

from costprof.costmodel.report.calls import Array, Strings
from costprof.costmodel.report.series import sampled

LEAST_CALLS = 40
"""Calls from which the question can be asked."""

_MOST_CALLS = 6000
_FOLDS = 4
_REPEATS = 3


@dataclass(frozen=True, slots=True)
class Driver:
    """One feature.

    Attributes:
        name: Of the feature.
        spearman: Rank correlation with the target.
        importance: By how many percent the target is missed more where the feature is shuffled,
            on calls of groups the fit has not seen.
    """

    name: str
    spearman: float
    importance: float


@dataclass(frozen=True, slots=True)
class Drivers:
    """Features of one target, the most important first.

    `r2` says how much of the logarithm's variance the fit behind the importances explains on
    groups it has not seen: where that is little, they mean little.
    """

    drivers: list[Driver]
    calls: int
    groups: int
    r2: float


def drivers(features: Mapping[str, Array], target: Array, group: Strings) -> Drivers | None:
    """Return what predicts `target` [n], or None where too few calls or features are known.

    A target that never varies has no drivers either.

    Boosted trees on the target's logarithm, fitted without one part of the groups and judged on it
    by scikit-learn's `permutation_importance` (Breiman, Machine Learning 45, 2001), averaged over
    the parts. Features that never vary, or are unknown everywhere, are left out.
    """
    known = np.flatnonzero(np.isfinite(target) & (target > 0.0))
    known = known[sampled(len(known), _MOST_CALLS)]
    groups = np.unique(group[known])
    varied = [name for name, values in features.items() if _varies(values[known])]
    if len(known) < LEAST_CALLS or len(groups) < 2 or not varied or not _varies(target[known]):
        return None
    x = np.stack([features[name][known] for name in varied], axis=1)
    y = np.log(target[known])
    importance, predicted = _importances(x, y, group[known])
    found = [
        Driver(name, _spearman(x[:, i], y), 100.0 * float(np.expm1(importance[i])))
        for i, name in enumerate(varied)
    ]
    found.sort(key=lambda each: (-each.importance, each.name))
    r2 = 1.0 - float(((y - predicted) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    return Drivers(found, len(known), len(groups), r2)


def _importances(x: Array, y: Array, group: Strings) -> tuple[Array, Array]:
    """Return the mean loss of each feature [features] and the held-out predictions [n]."""
    folds = GroupKFold(n_splits=min(_FOLDS, len(np.unique(group))))
    loss, predicted = np.zeros(x.shape[1]), np.empty(len(y))
    for train, test in folds.split(x, y, group):
        model = HistGradientBoostingRegressor(
            max_iter=120,
            min_samples_leaf=max(2, min(20, len(train) // 20)),
            early_stopping=False,
            random_state=0,
        ).fit(x[train], y[train])
        predicted[test] = model.predict(x[test])
        found = permutation_importance(
            model,
            x[test],
            y[test],
            scoring="neg_mean_absolute_error",
            n_repeats=_REPEATS,
            random_state=0,
        )
        loss += found.importances_mean * len(test) / len(y)
    return loss, predicted


def _spearman(x: Array, y: Array) -> float:
    """Spearman's rank correlation where `x` is known; NaN where one does not vary there."""
    known = np.isfinite(x)
    if not (_varies(x[known]) and _varies(y[known])):
        return float("nan")
    return float(np.corrcoef(rankdata(x[known]), rankdata(y[known]))[0, 1])


def _varies(values: npt.NDArray[np.float64]) -> bool:
    known = values[np.isfinite(values)]
    return len(known) > 2 and bool(known.min() < known.max())
