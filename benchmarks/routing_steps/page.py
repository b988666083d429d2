"""The curves as one HTML page: loss of bits per byte against what a decode batch costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from costprof.costmodel.report.axes import Axis, linear_axis
from costprof.costmodel.report.chart import Dots, Line, Mark, chart, series_style
from costprof.costmodel.report.figure import Cell, Figure, Numbers, Report, Section
from costprof.costmodel.report.page import render_page
from routing_steps.pareto import OURS, PLAIN, hull, policy_of, verdict

DRAWN = (OURS, "lynx", "oea", "budget", "tile_round", "fewer")
COSTS = (
    ("weight_bytes", "weight bytes"),
    ("predicted_us", "predicted µs"),
    ("predicted_mj", "predicted mJ"),
)
_WORST = 0.03


def page(report: Mapping[str, Any]) -> str:
    """Return the page of what `routing.py` found."""
    batches = {int(batch): found for batch, found in report["batches"].items()}
    some = next(iter(batches.values()))
    return render_page(
        Report(
            title="Routing policies: cost at equal quality",
            facts=(
                ("model", report["model"]),
                ("test", f"{some['seeds']} draws of {some['sequences']} sequences or one batch"),
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
    plain = found["test"][PLAIN]
    x = linear_axis("bits per byte lost, % of plain top-k's", -0.2, 100 * _WORST, 0.5)
    y = Axis(f"{named}, share of plain top-k's", 0.2, 1.05, False, _TENTHS)
    marks: list[Mark] = []
    rows: list[tuple[Cell, ...]] = []
    for place, policy in enumerate(DRAWN):
        own = [name for name in found["test"] if policy_of(name) in (policy, PLAIN)]
        loss = [found["test"][n]["bits_per_byte"] / plain["bits_per_byte"] - 1.0 for n in own]
        cost = [found["test"][n][key] / plain[key] for n in own]
        front = hull(loss, cost)
        across, up = 100 * np.array(loss), np.array(cost)
        marks.append(Line(across[front], up[front], series_style(place)))
        marks.append(Dots(across, up, series_style(place)))
        rows += [
            (name, 100 * lost, share)
            for name, lost, share in zip(own, loss, cost, strict=True)
            if name != PLAIN
        ]
    return Figure(
        name=f"{key}-{batch}",
        title=f"{named[0].upper()}{named[1:]} against quality, batch {batch}",
        caption="Lower left is better. Lines: what mixing two settings gives.",
        numbers=Numbers(("setting", "bits lost, %", f"{named}, share"), rows),
        svg=chart(x, y, marks, f"{named} against bits per byte lost, batch {batch}"),
        legend=tuple((series_style(i), policy) for i, policy in enumerate(DRAWN)),
    )


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
            ("setting", "bits lost, %", "bytes", "interval", OURS, "µs", "mJ"),
            rows,
        ),
    )
