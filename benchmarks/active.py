"""What choosing the layers to measure is worth: errors at all others, beside measuring at random.

    python benchmarks/active.py --data DIR [--seeds 3]

DIR holds `h200_moe_latency_power_vllm-0.22.parquet`, public measurements of whole MoE layers. Of
them 2, 5 and 10 % are given to the model, each share holding the one before:

- active: chosen by `costprof.costmodel.grouped.choose`, which sees no latency but those of the
  shares before;
- random: as many drawn at random, same model;
- boosting: those drawn at random, roofline times a boosted ratio.

Errors are of the latency of all layers not given. Who chooses may leave the easy ones to be
predicted, so that errors at the layers that neither choice was given stand beside them.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pyarrow.parquet as pq

from costprof.core.device import DeviceFingerprint
from costprof.costmodel.devices import DeviceSpec, spec_for
from costprof.costmodel.evaluation.baselines import boosted, roofline_us
from costprof.costmodel.grouped.choose import choose_layers, group_weights
from costprof.costmodel.grouped.field import FieldScales
from costprof.costmodel.grouped.fit import fit_grouped
from costprof.costmodel.grouped.model import Measured
from costprof.costmodel.grouped.public import public_points
from costprof.costmodel.grouped.work import layer_work

FILE = "h200_moe_latency_power_vllm-0.22.parquet"
SHARES = (0.02, 0.05, 0.10)
AIM_MAPE = 4.5  # at the last share


@dataclass(frozen=True)
class Result:
    """Latencies predicted after measuring some layers: p05, p50, p95, all [n]; NaN: measured."""

    method: str
    share: float
    predicted: tuple[np.ndarray, np.ndarray, np.ndarray]

    @property
    def held_out(self) -> np.ndarray:
        """Which layers were not measured [n]."""
        return np.isfinite(self.predicted[1])


def active(measured: Measured, spec: DeviceSpec, seed: int) -> Iterator[Result]:
    """Choose, measure, fit, choose on."""
    n = len(measured.points)
    known = np.empty(0, dtype=np.int64)
    scales, weights = FieldScales(), None
    for share in SHARES:
        began = time.perf_counter()
        number = round(share * n) - len(known)
        choice = choose_layers(measured.points, known, number, scales, weights=weights, seed=seed)
        took = time.perf_counter() - began
        print(
            f"seed {seed}: chose {number} of {n} in {took:.1f} s, "
            f"expected error then {choice.expected_error:.1%}",
            file=sys.stderr,
        )
        known = np.concatenate([known, choice.chosen])
        given = measured.take(known)
        model = fit_grouped(given, spec).model
        scales, weights = model.scales[0], group_weights(model, given)
        rest = np.setdiff1d(np.arange(n), known)
        predicted = model.predict(measured.points.take(rest), given).latency_us
        yield Result("active", share, _spread(n, rest, *predicted))


def random(measured: Measured, spec: DeviceSpec, seed: int) -> Iterator[Result]:
    """Draw, fit this model, and the usual recipe on the same layers."""
    n = len(measured.points)
    order = np.random.default_rng(seed).permutation(n)
    roofline = roofline_us(measured.points, layer_work(measured.points), spec)
    for share in SHARES:
        known, rest = np.split(order, [round(share * n)])
        given, wanted = measured.take(known), measured.points.take(rest)
        predicted = fit_grouped(given, spec).model.predict(wanted, given).latency_us
        yield Result("random", share, _spread(n, rest, *predicted))
        plain = boosted(given, roofline[known], wanted, roofline[rest])
        unknown = np.full(len(rest), np.nan)
        yield Result("boosting", share, _spread(n, rest, unknown, plain, unknown))


def _spread(n: int, at: np.ndarray, *values: np.ndarray) -> tuple[np.ndarray, ...]:
    columns = np.full((len(values), n), np.nan)
    columns[:, at] = values
    return tuple(columns)


def main() -> None:
    """Run all and print a table, means over the seeds with the least and most MAPE beside them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help=f"folder that holds {FILE}")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    table = pq.read_table(arguments.data / FILE)
    points = public_points(table)
    latency_us = 1e3 * table["latency"].to_numpy()
    measured = Measured(points, latency_us, np.full(len(points), np.nan))
    _ = points.load  # worked out once for all
    spec = spec_for(DeviceFingerprint(kind="gpu", name="NVIDIA H200"))
    rows: dict[tuple[float, str], list[list[float]]] = {}
    for seed in range(arguments.seeds):
        results = [*active(measured, spec, seed), *random(measured, spec, seed)]
        for share in SHARES:
            mine = [each for each in results if each.share == share]
            neither = np.logical_and.reduce([each.held_out for each in mine])
            for each in mine:
                figures = _figures(each, latency_us, neither)
                rows.setdefault((share, each.method), []).append(figures)
    print(
        f"{len(points)} layers, {arguments.seeds} seeds; errors in percent, of layers not measured"
    )
    print(
        f"{'measured':>8}  {'method':8} {'MAPE':>5} {'least':>5} {'most':>5} {'median':>6} "
        f"{'p90':>5} {'in p05-p95':>10} {'MAPE where neither measured':>28}"
    )
    for (share, method), each in sorted(rows.items()):
        mape, median, p90, covered, both = np.mean(each, axis=0)
        seen = [values[0] for values in each]
        inside = f"{covered:10.1f}" if np.isfinite(covered) else f"{'-':>10}"
        print(
            f"{share:8.0%}  {method:8} {mape:5.2f} {min(seen):5.2f} {max(seen):5.2f} "
            f"{median:6.2f} {p90:5.1f} {inside} {both:28.2f}"
        )
    best = np.mean([values[0] for values in rows[SHARES[-1], "active"]])
    print(f"aim: MAPE of active at {SHARES[-1]:.0%} at most {AIM_MAPE}: {best:.2f}")


def _figures(result: Result, latency_us: np.ndarray, neither: np.ndarray) -> list[float]:
    """Return MAPE, median, p90, coverage and MAPE where no method measured, in percent."""
    low, middle, high = result.predicted
    at = result.held_out
    error = 100 * np.abs(middle / latency_us - 1)
    covered = np.nan
    if np.isfinite(low).any():
        covered = 100 * float(np.mean((low <= latency_us)[at] & (latency_us <= high)[at]))
    return [
        float(error[at].mean()),
        float(np.median(error[at])),
        float(np.quantile(error[at], 0.9)),
        covered,
        float(error[neither].mean()),
    ]


if __name__ == "__main__":
    main()
