"""How far off are prices carried from one GPU to another, without and with a few measurements?

    OMP_NUM_THREADS=1 python benchmarks/transfer.py --data ../shared/data/silicon
    ... --source h200_moe_latency_vllm-0.24 --target h100_moe_latency_vllm-0.24     the way back

A target of another version of the framework is taken by the names the source knows it by.

Every line is judged on all layers both files hold, those given as measurements left out. Baselines
beside it: the source's latency as it is, that times the ratio of both rooflines, and, with the same
random measurements, boosted trees on log(target / source) that see the traits of the layer. Points
are drawn or chosen from five seeds; `chosen` draws the pool it chooses from. The spread is that of
the seeds. `costprof evaluate --split device:FROM,TO` is one seed of it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.ensemble import HistGradientBoostingRegressor

from costprof.core.device import DeviceFingerprint
from costprof.costmodel.devices import DeviceSpec, spec_for
from costprof.costmodel.evaluation.figures import error_figures, figures_of
from costprof.costmodel.evaluation.transfer import TransferTrial
from costprof.costmodel.grouped.carry import Source, distance
from costprof.costmodel.grouped.fit import fit_grouped
from costprof.costmodel.grouped.model import Measured
from costprof.costmodel.grouped.public import public_points

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

SEEDS = 5
POINTS = (20, 50, 200)
AIMS = {0: 8.0, 200: 4.0}


def read(path: Path) -> tuple[pa.Table, Measured]:
    """Return the rows of a public file and what they say."""
    table = pq.read_table(path)
    latency_us = table["latency"].to_numpy() * 1e3
    return table, Measured(public_points(table), latency_us, np.full(table.num_rows, np.nan))


def spec_of(table: pa.Table) -> DeviceSpec:
    """Return the spec of the device a public file names."""
    name = str(table["device"][0].as_py())
    return spec_for(DeviceFingerprint(kind="gpu", name=name))


def judged(trial: TransferTrial, given: Index) -> tuple[float, ...]:
    """Return the errors on all but `given`, the coverage and the mean half width, all percent."""
    frame = trial.frame(given, "benchmark")
    ours = figures_of(frame)["latency"]["all"]["costprof"]
    low, high = (frame[f"latency_us_{at}"].to_numpy() for at in ("p05", "p95"))
    half = 100.0 * np.expm1(0.5 * np.log(high / low)).mean()
    return (*(ours[name] for name in ("mape", "median", "p90", "coverage_90")), float(half))


def boosted(trial: TransferTrial, at: Index) -> Array:
    """Return the latency by trees that learned log(target / source) from the layers `at`."""
    methods = np.unique(trial.carried.method, return_inverse=True)[1]
    x = np.column_stack([trial.carried.traits, methods])
    trees = HistGradientBoostingRegressor(max_iter=150, min_samples_leaf=5, random_state=0)
    trees.fit(x[at], np.log(trial.target.latency_us / trial.identity_us)[at])
    return np.asarray(trial.identity_us * np.exp(trees.predict(x)))


def line(name: str, runs: list[tuple[float, ...]]) -> str:
    """Return a row of the table: means over `runs`, and the extremes of MAPE and coverage."""
    values = np.array(runs)
    mean = values.mean(axis=0)
    text = f"{name:34s} {mean[0]:5.2f} {mean[1]:5.2f} {mean[2]:6.2f}"
    if len(mean) > 3:
        text += f"  {mean[3]:5.1f} ±{mean[4]:4.1f} %"
    if len(runs) > 1:
        text += f"   MAPE {values[:, 0].min():.2f} to {values[:, 0].max():.2f}"
        if len(mean) > 3:
            text += f", coverage {values[:, 3].min():.1f} to {values[:, 3].max():.1f}"
    return text


def main() -> None:
    """Fit the source, carry it, and print all figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--source", default="h100_moe_latency_vllm-0.24")
    parser.add_argument("--target", default="h200_moe_latency_vllm-0.24")
    arguments = parser.parse_args()
    source_rows, measured = read(arguments.data / f"{arguments.source}.parquet")
    target_rows, target = read(arguments.data / f"{arguments.target}.parquet")
    source_spec, target_spec = spec_of(source_rows), spec_of(target_rows)
    began = time.monotonic()
    source = Source(fit_grouped(measured, source_spec).model, source_spec, measured)
    fitted = time.monotonic()
    every = TransferTrial.of(source, target_spec, target)
    seconds = time.monotonic() - fitted
    print(
        f"{arguments.source}: {len(measured.points)} layers fitted in {fitted - began:.0f} s; "
        f"{len(target.points)} layers of {arguments.target} carried in {seconds:.0f} s; "
        f"{source_spec.name} and {target_spec.name} are {distance(source_spec, target_spec):.2f} "
        "apart"
    )
    trial = every.take(every.in_both)
    true_us = trial.target.latency_us
    print(f"{len(trial)} layers in both\n")
    print(f"{'':34s}  MAPE  median  p90   90 % intervals: coverage, half width")
    nothing = np.empty(0, dtype=np.int64)
    baselines = figures_of(trial.frame(nothing, "benchmark"))["latency"]["all"]
    for name in ("source as it is", "source x rooflines"):
        print(line(name, [tuple(baselines[name][each] for each in ("mape", "median", "p90"))]))
    print(line(f"no measurement (aim {AIMS[0]:.0f})", [judged(trial, nothing)]))
    for number in POINTS:
        drawn = [
            np.random.default_rng(seed).choice(len(trial), number, replace=False)
            for seed in range(SEEDS)
        ]
        chosen = [trial.chosen(number, seed=seed) for seed in range(SEEDS)]
        trees = []
        for at in drawn:
            rest = np.setdiff1d(np.arange(len(trial)), at)
            figures = error_figures(boosted(trial, at)[rest], true_us[rest])
            trees.append(tuple(figures.values()))
        print(line(f"{number} drawn, boosting", trees))
        for name, picks in (("drawn", drawn), ("chosen", chosen)):
            aim = f" (aim {AIMS[number]:.0f})" if number in AIMS else ""
            print(line(f"{number} {name}{aim}", [judged(trial, at) for at in picks]))


if __name__ == "__main__":
    main()
