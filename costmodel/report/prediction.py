"""Figures of what predicts latency, power and heat."""

from __future__ import annotations

import numpy as np

from costprof.costmodel.report.calls import Array, Calls
from costprof.costmodel.report.drivers import drivers
from costprof.costmodel.report.figure import Figure, Numbers

_MEANINGFUL = 0.5
_MOST_LISTED = 20


def driver_figures(calls: Calls, power_kind: str, heat_kind: str, device: str) -> list[Figure]:
    """Return a figure for each of latency, power and heat that enough calls have."""
    targets: tuple[tuple[str, str, Array], ...] = (
        ("latency", "measured", calls.latency_us),
        ("power", power_kind, calls.power_w),
        ("heat", heat_kind, calls.rise_c),
    )
    found = [_figure(calls, name, kind, values, device) for name, kind, values in targets]
    return [figure for figure in found if figure is not None]


def _figure(calls: Calls, name: str, kind: str, target: Array, device: str) -> Figure | None:
    found = drivers(calls.features, target, calls.shape)
    if found is None:
        return None
    doubt = "" if found.r2 >= _MEANINGFUL else " That is little: take the importances as a hint."
    what = {"heat": "the temperature rise"}.get(name, name)
    return Figure(
        name=f"drivers-{name}",
        title=f"What predicts {name} on {device}",
        caption=f"Of {what} ({kind}), {found.calls} calls of {found.groups} shapes. Spearman: rank "
        "correlation, from -1 to 1. Importance: by how many percent the prediction is further off "
        "where the feature is shuffled (scikit-learn's permutation_importance on quickly boosted "
        "trees, on shapes left out of the fit). Features that say the same share what they are "
        "worth. The trees explain "
        f"{max(found.r2, 0.0):.0%} of the variance of log {name} on left-out shapes.{doubt}",
        numbers=Numbers(
            ("feature", "Spearman", "importance %"),
            [
                (each.name, _rounded(each.spearman), each.importance)
                for each in found.drivers[:_MOST_LISTED]
            ],
            bars=("Spearman", "importance %"),
        ),
    )


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 3)
