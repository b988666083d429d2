"""Curves of several batches side by side as one SVG file, for a page that shows pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from costprof.costmodel.report.chart import HEIGHT, WIDTH, series_style
from routing_steps.page import DRAWN, curves

_COLOURS = ("#0b6bcb", "#c2520a", "#12805c", "#a3479a", "#8a6d00", "#5a5f6b")
_HEAD, _FOOT = 28, 30
_STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#59636e}.axis,.head{fill:#1b1f24}"
    ".head{font-size:14px;font-weight:600}.grid{stroke:#e3e6ea;fill:none}"
    ".frame{stroke:#c9ced5;fill:none}.line{fill:none;stroke-width:1.8}"
    ".dots{fill:none;stroke-width:6;stroke-linecap:round}"
) + "".join(f".s{i}{{stroke:{colour}}}" for i, colour in enumerate(_COLOURS))


def picture(report: Mapping[str, Any], batches: Sequence[int]) -> str:
    """Return the SVG: weight bytes over bits per byte lost, a panel for each of `batches`."""
    width, height = WIDTH * len(batches), _HEAD + HEIGHT + _FOOT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">',
        f'<style>{_STYLE}</style><rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for place, batch in enumerate(batches):
        panel = curves(
            report["batches"][str(batch)], "weight_bytes", "weight bytes", f"batch {batch}"
        )
        at = f'<svg x="{place * WIDTH}" y="{_HEAD}" width="{WIDTH}" height="{HEIGHT}" '
        parts.append(f'<text class="head" x="{place * WIDTH + 62}" y="18">batch {batch}</text>')
        parts.append(panel.replace("<svg ", at, 1))
    for place, policy in enumerate(DRAWN):
        x, y = 62 + 110 * place, _HEAD + HEIGHT + 14
        parts.append(f'<path class="dots {series_style(place)}" d="M{x} {y}h0"/>')
        parts.append(f'<text x="{x + 10}" y="{y + 4}">{policy}</text>')
    parts.append("</svg>\n")
    return "".join(parts)
