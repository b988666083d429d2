"""A cost surface as a grid of cells, the darker the larger."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from costprof.costmodel.report.axes import Array, short
from costprof.costmodel.report.binning import RANGE

_CELL_HEIGHT = 22
_BOTTOM, _RIGHT, _WIDTH = 44, 14, 440
_LETTER, _WIDEST = 6.4, 200  # of a label; the page may enlarge text by a quarter
_FAINTEST = 0.08
_MOST_LABELS = 8


def heat_map(
    values: Array, columns: Sequence[str], rows: Sequence[str], across: str, title: str, unit: str
) -> str:
    """Return an SVG of `values` [rows, columns], positive or NaN where nothing is known.

    Shades follow the logarithm. Every cell says its value when pointed at. Of columns that are
    ranges only the starts are written below.
    """
    starts = [column.partition(RANGE)[0] for column in columns]
    named = across if starts == list(columns) else f"{across}, from"
    known = values[np.isfinite(values)]
    low, high = np.log(known.min()), np.log(known.max())
    shade = _FAINTEST + (1.0 - _FAINTEST) * (np.log(values) - low) / max(high - low, 1e-9)
    left = min(12 + _LETTER * 1.25 * max(len(row) for row in rows), _WIDEST)
    wide = (_WIDTH - left - _RIGHT) / len(columns)
    bottom = _CELL_HEIGHT * len(rows)
    parts = [
        f'<svg class="chart heat" viewBox="0 0 {_WIDTH} {bottom + _BOTTOM}" role="img">'
        f"<title>{escape(title)}</title>"
    ]
    for i, row in enumerate(rows):
        y = _CELL_HEIGHT * i
        parts.append(f'<text x="{left - 6}" y="{y + 15}" text-anchor="end">{escape(row)}</text>')
        parts += [
            f'<rect x="{left + wide * j:.1f}" y="{y}" width="{wide - 1:.1f}" '
            f'height="{_CELL_HEIGHT - 1}" fill-opacity="{shade[i, j]:.2f}"><title>'
            f"{escape(f'{row}, {column} {across}: {short(values[i, j])} {unit}')}</title></rect>"
            for j, column in enumerate(columns)
            if np.isfinite(values[i, j])
        ]
    step = -(-len(columns) // _MOST_LABELS)
    for j in range(0, len(columns), step):
        parts.append(
            f'<text x="{left + wide * (j + 0.5):.1f}" y="{bottom + 15}" '
            f'text-anchor="middle">{escape(starts[j])}</text>'
        )
    parts.append(
        f'<text class="axis" x="{(left + _WIDTH) / 2}" y="{bottom + 36}" text-anchor="middle">'
        f"{escape(named)}</text></svg>"
    )
    return "".join(parts)
