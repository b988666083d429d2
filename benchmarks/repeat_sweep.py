"""Does a table fitted on one CPU sweep price another one, hours later, at counts it did not see?

    python benchmarks/repeat_sweep.py --out out/repeat      # measures the first sweep: a minute
    python benchmarks/repeat_sweep.py --out out/repeat      # hours later: the second, figures

`sweep_budget.toml` is measured whole, twice. Fitted, as `costprof fit` does, is every other token
count of the first sweep; priced are the counts between them, and compared with the *second* sweep.
Beside it: a straight line between the same counts; how far the sweeps are apart at those counts,
which no table can beat; and the table corrected by five calls of the second sweep at counts it was
fitted on (`CostTable.calibrated`), which is what a runtime would do.
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from sweep_budget import Rows, measured

from costprof.costmodel.calibration import fit_scale
from costprof.costmodel.measurements import MeasuredCurve, measured_curves
from costprof.costmodel.predict import LatencyModel, straight_us
from costprof.costmodel.residual import fit_latency

OBSERVED = 5


def main() -> None:
    """Measure what is missing and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the two sweeps")
    parser.add_argument("--hours", type=float, default=2.0, help="least time between the two")
    arguments = parser.parse_args()
    first_folder, second_folder = (arguments.out / name for name in ("first", "second"))
    first = measured(first_folder)
    hours = _hours_between(_measured_at(first), datetime.now(UTC))
    if not (second_folder / "journal.jsonl").exists() and hours < arguments.hours:
        sys.exit(f"the first sweep is {hours:.1f} hours old: come back after {arguments.hours:g}")
    second = measured(second_folder)
    apart = _hours_between(_measured_at(first), _measured_at(second))
    fitted, held_out = alternate(first)
    model = fit_latency(measured_curves(list(fitted.values())))
    curves = {curve.class_id: curve for curve in measured_curves(list(fitted.values()))}
    names = sorted(name for name in held_out if name in second)
    truth = np.array([second[name]["latency_us_p50"] for name in names])
    priced = np.array([price_us(model, curves, first[name]) for name in names])
    straight = np.array([straight_line_us(curves, first[name]) for name in names])
    reading = np.array([first[name]["latency_us_p50"] for name in names])
    again = sorted(name for name in fitted if name in second)
    chosen = [again[at] for at in np.linspace(0, len(again) - 1, OBSERVED).astype(int)]
    scale = fit_scale(
        [price_us(model, curves, first[name]) for name in chosen],
        [second[name]["latency_us_p50"] for name in chosen],
    )
    print(f"{len(first)} scenarios, measured twice, {apart:.1f} hours apart; one thread, measured")
    print(f"fitted on {len(fitted)}, priced at {len(names)} other token counts")
    print("errors against the second sweep, percent: mean / median / p90")
    for label, values in (
        ("table", priced),
        (f"table corrected by {OBSERVED} calls", priced * np.exp(scale.log_factor)),
        ("straight line", straight),
        ("the first sweep's own readings", reading),
    ):
        off = 100 * np.abs(values / truth - 1)
        print(
            f"  {label:32} {off.mean():5.2f} / {np.median(off):5.2f} / {np.quantile(off, 0.9):5.2f}"
        )


def alternate(rows: Rows) -> tuple[Rows, Rows]:
    """Return the rows at every other token count of each curve, ends among them, and the rest."""
    known, rest = Rows(), Rows()
    by_class: dict[str, list[dict[str, Any]]] = {}
    for row in rows.values():
        by_class.setdefault(row["class_id"], []).append(row)
    for curve in by_class.values():
        ordered = sorted(curve, key=lambda row: int(row["tokens"]))
        for at, row in enumerate(ordered):
            ends = at == len(ordered) - 1
            (known if at % 2 == 0 or ends else rest)[row["scenario_id"]] = row
    return known, rest


def price_us(model: LatencyModel, curves: dict[str, MeasuredCurve], row: dict[str, Any]) -> float:
    """Return the fitted median of one scenario."""
    tokens = np.array([float(row["tokens"])])
    return float(model.predict(curves[row["class_id"]], tokens)[0][0])


def straight_line_us(curves: dict[str, MeasuredCurve], row: dict[str, Any]) -> float:
    """Return the price straight in tokens between the counts that were fitted."""
    curve = curves[row["class_id"]]
    return float(straight_us(curve.tokens, curve.p50, np.array([float(row["tokens"])]))[0])


def _hours_between(earlier: datetime, later: datetime) -> float:
    return (later - earlier).total_seconds() / 3600.0


def _measured_at(rows: Rows) -> datetime:
    """Return when the last of `rows` was measured."""
    return max(row["measured_at"] for row in rows.values())


if __name__ == "__main__":
    main()
