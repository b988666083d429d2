"""The curves as one HTML page: loss of bits per byte against what a decode batch costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from costprof.costmodel.report.axes import Axis
from costprof.costmodel.report.chart import Dots, Line, Mark, chart, series_style
from costprof.costmodel.report.figure import Cell, Figure, Numbers, Report, Section
from costprof.costmodel.report.page import render_page
from routing_steps.pareto import OURS, PLAIN, WORST, hull, policy_of, verdict

DRAWN = (OURS, "lynx", "oea", "budget", "tile_round", "fewer")
COSTS = (
    ("weight_bytes", "weight bytes"),
    ("predicted_us", "predicted µs"),
    ("predicted_mj", "predicted mJ"),
)


def page(report: Mapping[str, Any]) -> str:
    """Return the page of what `routing.py` found."""
    batches = {int(batch): found for batch, found in report["batches"].items()}
    some = next(iter(batches.values()))
    return render_page(
        Report(
            title="Routing policies: cost at equal quality",
            facts=(
                ("model", report["model"]),
                ("test", f"{some['draws']} draws of {some['sequences']} sequences or one batch"),
                ("prices", f"shipped H200 predictions of {report['table']}"),
            ),
            provenance=(
                "Bits per byte, active experts and weight bytes are exact counts on this model.",
                "µs and mJ are predicted: what the same token counts would cost in that layer.",
            ),
            sections=[
                Section(
                    title=f"Batch {batch}",
                    intro="Settings on each policy's own curve on dev, judged on test.",
                    figures=[
                        *(_curves(batch, found, key, named) for key, named in COSTS),
                        _over_ours(batch, found),
                    ],
                )
                for batch, found in sorted(batches.items())
            ],
        )
    )


def _curves(batch: int, found: Mapping[str, Any], key: str, named: str) -> Figure:
    rows: list[tuple[Cell, ...]] = []
    for policy in DRAWN:
        names, loss, cost = curve_points(found, policy, key)
        rows += [
            (name, 100 * lost, share)
            for name, lost, share in zip(names, loss, cost, strict=True)
            if name != PLAIN
        ]
    return Figure(
        name=f"{key}-{batch}",
        title=f"{named[0].upper()}{named[1:]} against quality, batch {batch}",
        caption="Lower left is better. Lines: what mixing two settings gives.",
        numbers=Numbers(("setting", "bits lost, %", f"{named}, share"), rows),
        svg=curves(found, key, named, f"{named} against bits per byte lost, batch {batch}"),
        legend=tuple((series_style(i), policy) for i, policy in enumerate(DRAWN)),
    )


def curves(found: Mapping[str, Any], key: str, named: str, title: str) -> str:
    """Return an SVG of the cost `key` of the policies drawn over the bits per byte they lose."""
    x = Axis("bits per byte lost, % of plain top-k's", -0.25, 100 * WORST, False, _HALVES)
    y = Axis(f"{named}, share of plain top-k's", 0.2, 1.05, False, _TENTHS)
    marks: list[Mark] = []
    for place, policy in enumerate(DRAWN):
        _, loss, cost = curve_points(found, policy, key)
        front = hull(loss, cost)
        across, up = 100 * np.array(loss), np.array(cost)
        marks.append(Line(across[front], up[front], series_style(place)))
        marks.append(Dots(across, up, series_style(place)))
    return chart(x, y, marks, title)


def curve_points(
    found: Mapping[str, Any], policy: str, key: str
) -> tuple[list[str], list[float], list[float]]:
    """Return a policy's settings and plain top-k, the bits they lose and their cost, as shares."""
    test = found["test"]
    plain = test[PLAIN]
    lost = {
        name: each["bits_per_byte"] / plain["bits_per_byte"] - 1.0 for name, each in test.items()
    }
    names = [n for n in test if policy_of(n) in (policy, PLAIN) and lost[n] <= WORST]
    return names, [lost[n] for n in names], [test[n][key] / plain[key] for n in names]


_HALVES = tuple((halves / 2, f"{halves / 2:g}") for halves in range(7))
_TENTHS = tuple((tenths / 10, f"{tenths / 10:g}") for tenths in range(2, 11))


def _over_ours(batch: int, found: Mapping[str, Any]) -> Figure:
    plain = found["test"][PLAIN]["bits_per_byte"]
    rows: list[tuple[Cell, ...]] = []
    for name, ratios in sorted(found["over_marginal"].items()):
        low, middle, high = ratios["weight_bytes"]
        rows.append(
            (
                name,
                100 * (found["test"][name]["bits_per_byte"] / plain - 1.0),
                middle,
                f"{low:.3f} to {high:.3f}",
                verdict(ratios["weight_bytes"]),
                ratios["predicted_us"][1],
                ratios["predicted_mj"][1],
            )
        )
    return Figure(
        name=f"over-marginal-{batch}",
        title=f"Cost over {OURS}'s at equal bits per byte, batch {batch}",
        caption="Paired bootstrap over decode batches, 95 %. Above 1: dearer than ours.",
        numbers=Numbers(
            ("setting", "bits lost, %", "bytes", "interval", "verdict", "µs", "mJ"),
            rows,
        ),
    )
