"""Figures of error: how far off predictions of left-out calls are, and whether intervals hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import norm

from costprof.costmodel.report.axes import Array, Axis, linear_axis, log_axis, token_axis
from costprof.costmodel.report.binning import bin_centres, binned, count_bins
from costprof.costmodel.report.calls import HeldOut
from costprof.costmodel.report.chart import (
    REFERENCE,
    Band,
    Dots,
    Line,
    Mark,
    chart,
    series_style,
)
from costprof.costmodel.report.figure import Cell, Figure, Numbers
from costprof.costmodel.report.series import drawn_of, series_dots, series_legend, series_order

LEVELS = (50.0, 60.0, 70.0, 80.0, 90.0, 95.0)
_COVERAGE = 90.0
_FURTHEST = 2.0  # predicted / measured at the edge of the plot


def accuracy_figures(held_out: HeldOut) -> list[Figure]:
    """Return all figures of error."""
    return [
        error_table(held_out),
        *([] if held_out.choices is None else [least_energy(held_out.choices)]),
        residuals(held_out),
        error_by_tokens(held_out),
        calibration(held_out),
        coverage_by_tokens(held_out),
    ]


def error_table(held_out: HeldOut) -> Figure:
    """List the errors of the model beside those of simpler methods."""
    rows: list[tuple[Cell, ...]] = [
        (e.what, e.method, e.points, e.mape, e.median, e.p90, e.coverage) for e in held_out.errors
    ]
    return Figure(
        name="errors",
        title="Errors beside those of simpler methods",
        caption=f"|predicted / measured - 1| in percent, {held_out.how}; the last column is the "
        "share of measured values inside the 90 % interval. Simpler methods see the same "
        f"measurements. {held_out.energy_note}".strip(),
        numbers=Numbers(
            ("left out", "predicted by", "n", "MAPE %", "median %", "p90 %", "in 90 % interval"),
            rows,
        ),
    )


def least_energy(choices: tuple[int, float, float]) -> Figure:
    """Tell how often predictions choose the way of least energy."""
    return Figure(
        name="least-energy",
        title="Choices of least energy",
        caption="Of the ways one layer was run at one batch and routing (kernel, shard, "
        "precision), the one of least predicted energy over all ranks, against the one of least "
        "measured energy. Within 3 % of it counts as agreement.",
        numbers=Numbers(("choices", "agree %", "mean extra energy %"), [choices]),
    )


def residuals(held_out: HeldOut) -> Figure:
    """Draw predicted / measured over tokens, with its median and the middle 80 %."""
    ratio = held_out.predicted_us / held_out.measured_us
    bins, at = count_bins(held_out.tokens)
    low, middle, high = (binned(ratio, at, len(bins), _quantile(q)) for q in (0.1, 0.5, 0.9))
    centre = bin_centres(held_out.tokens, at, len(bins))
    names, series = series_order(held_out.series)
    x = token_axis(held_out.tokens)
    furthest = float(np.clip(np.abs(np.log(ratio)).max(), 0.02, np.log(_FURTHEST)))
    y = _ratio_axis(np.exp(furthest))
    beyond = int((np.abs(np.log(ratio)) > np.log(_FURTHEST)).sum())
    marks: list[Mark] = [
        Line(np.array([x.low, x.high]), np.ones(2), REFERENCE),
        Band(centre, low, high, "middle"),
        *series_dots(held_out.tokens, ratio, series, names),
        Line(centre, middle, "middle"),
    ]
    rows: list[tuple[Cell, ...]] = [
        (bins[i], int((at == i).sum()), float(low[i]), float(middle[i]), float(high[i]))
        for i in range(len(bins))
    ]
    return Figure(
        name="residuals",
        title="Residuals",
        caption=f"Predicted over measured latency, {held_out.how}. Line and band: median and the "
        f"middle 80 % at a token count. {drawn_of(len(ratio))}"
        + (f" {beyond} beyond a factor of {_FURTHEST:g} are drawn at the edge." if beyond else ""),
        numbers=Numbers(("tokens", "n", "p10", "median", "p90"), rows),
        svg=chart(x, y, marks, "Predicted over measured latency against tokens"),
        legend=(*series_legend(names), ("middle", "median, middle 80 %")),
    )


def error_by_tokens(held_out: HeldOut) -> Figure:
    """Draw the mean error at each token count, of the model and the baselines."""
    bins, at = count_bins(held_out.tokens)
    centre = bin_centres(held_out.tokens, at, len(bins))
    methods = {"costprof": held_out.predicted_us, **held_out.baselines}
    errors = {
        name: binned(
            100.0 * np.abs(predicted / held_out.measured_us - 1.0),
            at,
            len(bins),
            lambda inside: float(inside.mean()),
        )
        for name, predicted in methods.items()
    }
    x = token_axis(held_out.tokens)
    y = log_axis("MAPE, percent", np.maximum(np.concatenate(list(errors.values())), 0.1))
    marks: list[Mark] = []
    for i, each in enumerate(errors.values()):
        marks.append(Line(centre, each, series_style(i), dashed=i > 0))
        marks.append(Dots(centre, each, series_style(i)))
    rows: list[tuple[Cell, ...]] = [
        (bins[i], int((at == i).sum()), *(_known(each[i]) for each in errors.values()))
        for i in range(len(bins))
    ]
    return Figure(
        name="error-by-tokens",
        title="Error by token count",
        caption=f"Mean absolute error of latency, {held_out.how}. Where a line is missing, the "
        "method can say nothing.",
        numbers=Numbers(("tokens", "n", *(f"{name}, MAPE %" for name in errors)), rows),
        svg=chart(x, y, marks, "Mean absolute percentage error of latency by token count"),
        legend=series_legend(list(methods)),
    )


def calibration(held_out: HeldOut) -> Figure:
    """Draw which share of measurements fell inside intervals of several nominal levels."""
    observed = [_observed(held_out, level) for level in LEVELS]
    x = linear_axis("nominal coverage, percent", 40.0, 100.0, 10.0)
    y = linear_axis("observed, percent", min(40.0, *observed), 100.0, 10.0)
    levels = np.array(LEVELS)
    marks: list[Mark] = [
        Line(np.array([40.0, 100.0]), np.array([40.0, 100.0]), REFERENCE, dashed=True),
        Line(levels, np.array(observed), series_style(0)),
        Dots(levels, np.array(observed), series_style(0)),
    ]
    return Figure(
        name="calibration",
        title="Calibration",
        caption="Share of measured latencies inside intervals of a nominal level. Intervals are "
        "fitted at 90 %; the other levels scale them as a normal distribution of the logarithm "
        "would. Above the dashed line intervals are wider than need be, below it too narrow.",
        numbers=Numbers(
            ("nominal %", "observed %"), [(a, b) for a, b in zip(LEVELS, observed, strict=True)]
        ),
        svg=chart(x, y, marks, "Observed against nominal coverage of the intervals of latency"),
        legend=((series_style(0), "observed"), (REFERENCE, "as promised")),
    )


def coverage_by_tokens(held_out: HeldOut) -> Figure:
    """Draw the observed coverage of the 90 % interval, and its width, at each token count."""
    bins, at = count_bins(held_out.tokens)
    centre = bin_centres(held_out.tokens, at, len(bins))
    inside = 100.0 * _inside(held_out, _COVERAGE).astype(np.float64)
    covered = binned(inside, at, len(bins), lambda each: float(each.mean()))
    width = 100.0 * (np.exp(held_out.half_width) - np.exp(-held_out.half_width))
    widths = binned(width, at, len(bins), lambda each: float(np.median(each)))
    x = token_axis(held_out.tokens)
    y = linear_axis("percent", 0.0, 100.0, 20.0)
    marks: list[Mark] = [
        Line(np.array([x.low, x.high]), np.full(2, _COVERAGE), REFERENCE, dashed=True),
        *_joined(centre, covered, 0),
        *_joined(centre, np.minimum(widths, 100.0), 1),
    ]
    rows: list[tuple[Cell, ...]] = [
        (bins[i], int((at == i).sum()), float(covered[i]), float(widths[i]))
        for i in range(len(bins))
    ]
    return Figure(
        name="coverage-by-tokens",
        title="The 90 % interval by token count",
        caption="Share of measured latencies inside the 90 % interval, and the interval's median "
        "width as a percentage of the prediction (drawn up to 100).",
        numbers=Numbers(("tokens", "n", "inside %", "width %"), rows),
        svg=chart(x, y, marks, "Coverage and width of the 90 % interval by token count"),
        legend=(
            (series_style(0), "inside"),
            (series_style(1), "width"),
            (REFERENCE, "as promised"),
        ),
    )


def _quantile(share: float) -> Callable[[Array], float]:
    return lambda inside: float(np.quantile(inside, share))


def _joined(x: Array, y: Array, index: int) -> Sequence[Mark]:
    return (Line(x, y, series_style(index)), Dots(x, y, series_style(index)))


def _observed(held_out: HeldOut, level: float) -> float:
    return 100.0 * float(_inside(held_out, level).mean())


def _inside(held_out: HeldOut, level: float) -> Array:
    wide = norm.ppf(0.5 + level / 200.0) / norm.ppf(0.5 + _COVERAGE / 200.0)
    missed = np.abs(np.log(held_out.measured_us / held_out.predicted_us))
    return np.asarray(missed <= wide * held_out.half_width + 1e-12)


def _ratio_axis(furthest: float) -> Axis:
    axis = log_axis("predicted / measured", np.array([1.0 / furthest, furthest]))
    marks = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0]
    if furthest < 1.1:
        marks = [0.92, 0.94, 0.96, 0.98, 1.0, 1.02, 1.04, 1.06, 1.08]
    inside = [mark for mark in marks if axis.low <= mark <= axis.high]
    return Axis(axis.title, axis.low, axis.high, True, tuple((m, f"{m:g}") for m in inside))


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
