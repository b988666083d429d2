"""Plots as inline SVG: real text, colours by class, nothing loaded from elsewhere.

Colours are the page's business: every mark has a class `s0` … `s5` or `reference`, so that light
and dark follow the reader. Points of a series are one path of dots, which stays small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

from costprof.costmodel.report.axes import Array, Axis

WIDTH, HEIGHT = 440, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 8, 46
REFERENCE = "reference"
MOST_SERIES = 6


@dataclass(frozen=True, slots=True)
class Dots:
    """A point at each of `x`, `y` [n]; `style` is a class of the page."""

    x: Array
    y: Array
    style: str


@dataclass(frozen=True, slots=True)
class Line:
    """A line through `x`, `y` [n]."""

    x: Array
    y: Array
    style: str
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Band:
    """What lies between `low` and `high` over `x`; all [n]."""

    x: Array
    low: Array
    high: Array
    style: str


Mark = Dots | Line | Band


def series_style(index: int) -> str:
    """Return the class of the series at `index`."""
    return f"s{index % MOST_SERIES}"


def chart(x: Axis, y: Axis, marks: Sequence[Mark], title: str) -> str:
    """Return an SVG of `marks` on two axes; `title` is what is read aloud for it."""
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}</title>",
        _grid(x, y),
    ]
    parts += [_drawn(mark, x, y) for mark in marks]
    parts.append("</svg>")
    return "".join(parts)


def _drawn(mark: Mark, x: Axis, y: Axis) -> str:
    across = _across(x, mark.x)
    if isinstance(mark, Band):
        ahead = _points(across, _up(y, mark.high))
        back = _points(across[::-1], _up(y, mark.low)[::-1])
        return f'<path class="band {mark.style}" d="M{"L".join(ahead + back)}Z"/>'
    points = _points(across, _up(y, mark.y))
    if not points:
        return ""
    if isinstance(mark, Dots):
        few = " few" if len(points) < 250 else ""
        return f'<path class="dots {mark.style}{few}" d="{"".join(f"M{p}h0" for p in points)}"/>'
    dashed = " dashed" if mark.dashed else ""
    return f'<path class="line {mark.style}{dashed}" d="M{"L".join(points)}"/>'


def _points(across: Array, up: Array) -> list[str]:
    good = np.isfinite(across) & np.isfinite(up)
    return [f"{a:.1f} {u:.1f}" for a, u in zip(across[good], up[good], strict=True)]


def _across(axis: Axis, values: npt.ArrayLike) -> Array:
    return _LEFT + axis.share(values) * (WIDTH - _LEFT - _RIGHT)


def _up(axis: Axis, values: npt.ArrayLike) -> Array:
    return (HEIGHT - _BOTTOM) - axis.share(values) * (HEIGHT - _TOP - _BOTTOM)


def _grid(x: Axis, y: Axis) -> str:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    lines, texts = [], []
    for value, called in x.ticks:
        at = float(_across(x, [value])[0])
        lines.append(f"M{at:.1f} {_TOP}V{bottom}")
        texts.append(f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{called}</text>')
    for value, called in y.ticks:
        at = float(_up(y, [value])[0])
        lines.append(f"M{_LEFT} {at:.1f}H{right}")
        texts.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{called}</text>')
    middle = (_TOP + bottom) / 2
    texts.append(
        f'<text class="axis" x="{(_LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{escape(x.title)}</text>"
    )
    texts.append(
        f'<text class="axis" transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(y.title)}</text>"
    )
    return (
        f'<path class="grid" d="{"".join(lines)}"/>'
        f'<path class="frame" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>{"".join(texts)}'
    )
