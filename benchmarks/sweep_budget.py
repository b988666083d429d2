"""How well does a part of a sweep, chosen by `--budget`, price what it left out?

    python benchmarks/sweep_budget.py --out out/budget      # two whole CPU sweeps first: minutes

`sweep_budget.toml` is measured whole, twice. On the first sweep the choice is replayed with budgets
of a quarter, a third and a half: it is shown a scenario's row once it asked for it. The rows shown
are fitted as `costprof fit` does, and priced is every scenario left out; errors are against the
*second* sweep. Beside it: as many scenarios drawn at random (20 seeds, two of each curve at least),
as many evenly spaced on each curve, and the whole first sweep, fitted, at the scenarios that
`--budget` left out. The line `reading` has the first sweep's own readings there: how far two sweeps
agree is as good as any price can be.
"""

from __future__ import annotations

import argparse
import itertools
import random
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from costprof.costmodel.measurements import is_usable, measured_curves
from costprof.costmodel.residual import fit_latency
from costprof.costmodel.sweep_search import sweep_search
from costprof.profiler.dataset import read_measurements
from costprof.profiler.plan import Plan, make_plan
from costprof.profiler.spec import load_spec

SPEC = Path(__file__).with_name("sweep_budget.toml")
SHARES = (1 / 4, 1 / 3, 1 / 2)
SEEDS = 20

Rows = dict[str, dict[str, Any]]


def measured(folder: Path) -> Rows:
    """Return the rows of the whole sweep by scenario id, measuring them if they are not there."""
    command = [sys.executable, "-m", "costprof.cli.main", "sweep", str(SPEC), "--out", str(folder)]
    command += ["--backend", "inprocess", "--budget", "all"]
    resume = ["--resume"] if (folder / "journal.jsonl").exists() else []
    subprocess.run([*command, *resume], check=True, stdout=subprocess.DEVNULL)
    rows: list[dict[str, Any]] = read_measurements(folder).to_pylist()
    return {row["scenario_id"]: row for row in rows if is_usable(row)}


def chosen(plan: Plan, budget: int, rows: Rows) -> tuple[set[str], float]:
    """Return what `--budget` measures if measuring gives `rows`, and the error it expects."""
    search = sweep_search(plan, budget=budget, target=None)
    grown, known = search.plan, Rows()
    while (step := search.step(grown, known)).plan is not None:
        grown = step.plan
        known = {s.scenario_id: rows[s.scenario_id] for s in grown.scenarios}
    return set(known), float(step.choice.expected_error or 0.0)


def drawn(plan: Plan, budget: int, seed: int) -> set[str]:
    """Return as many scenarios at random, two of each curve first."""
    draw = random.Random(seed)
    picked: list[str] = []
    for _, curve in itertools.groupby(plan.scenarios, key=lambda s: s.class_id):
        picked += draw.sample([s.scenario_id for s in curve], 2)
    rest = [s.scenario_id for s in plan.scenarios if s.scenario_id not in picked]
    return {*picked, *draw.sample(rest, budget - len(picked))}


def spaced(plan: Plan, budget: int) -> set[str]:
    """Return as many scenarios spread evenly over each curve's list, its ends among them."""
    curves = [list(c) for _, c in itertools.groupby(plan.scenarios, key=lambda s: s.class_id)]
    picked: set[str] = set()
    for number, curve in enumerate(curves):
        share = budget // len(curves) + (number < budget % len(curves))
        at = np.linspace(0, len(curve) - 1, share).round().astype(int)
        picked |= {curve[i].scenario_id for i in at}
    return picked


def errors(plan: Plan, known: Iterable[str], rows: Rows, truth: Rows) -> dict[str, float]:
    """Fit `rows` of the `known` scenarios and return the error at every one, against `truth`."""
    curves = measured_curves([rows[name] for name in sorted(known)])
    model = fit_latency(curves)
    subjects = {curve.class_id: curve for curve in curves}
    found = {}
    for scenario in plan.scenarios:
        tokens = np.array([float(scenario.tokens)])
        priced_us = float(model.predict(subjects[scenario.class_id], tokens)[0][0])
        real_us = truth[scenario.scenario_id]["latency_us_p50"]
        found[scenario.scenario_id] = abs(priced_us / real_us - 1)
    return found


def main() -> None:
    """Measure twice, replay and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the two sweeps")
    arguments = parser.parse_args()
    plan = make_plan(load_spec(SPEC), "cpu")
    rows, truth = (measured(arguments.out / name) for name in ("first", "second"))
    total = len(plan.scenarios)
    if set(rows) != set(truth) or len(rows) != total:
        sys.exit("some scenarios failed in a sweep: measure again in another folder")
    noisy = sum(row["status"] == "noisy" for each in (rows, truth) for row in each.values())
    print(f"{total} scenarios, measured twice; {noisy} of {2 * total} rows noisy")
    whole = errors(plan, rows, rows, truth)
    reading = {
        name: abs(row["latency_us_p50"] / truth[name]["latency_us_p50"] - 1)
        for name, row in rows.items()
    }
    print("errors at what was left out, in percent, against the second sweep: mean / median / p90")
    for share in SHARES:
        budget = round(share * total)
        mine, expected = chosen(plan, budget, rows)
        out = set(rows) - mine
        print(f"{budget} of {total} scenarios (expected error {expected:.1%})")
        print(f"  chosen        {_figures([errors(plan, mine, rows, truth)], [out])}")
        even = spaced(plan, budget)
        print(f"  evenly spaced {_figures([errors(plan, even, rows, truth)], [set(rows) - even])}")
        draws = [drawn(plan, budget, seed) for seed in range(SEEDS)]
        found = [errors(plan, each, rows, truth) for each in draws]
        print(f"  random        {_figures(found, [set(rows) - each for each in draws])}")
        print(f"  whole sweep   {_figures([whole], [out])}  at the scenarios that were not chosen")
        print(f"  reading       {_figures([reading], [out])}  at the same")


def _figures(found: list[dict[str, float]], held_out: list[set[str]]) -> str:
    off = [
        100 * error[name]
        for error, names in zip(found, held_out, strict=True)
        for name in sorted(names)
    ]
    return f"{np.mean(off):5.2f} / {np.median(off):5.2f} / {np.quantile(off, 0.9):5.2f}"


if __name__ == "__main__":
    main()
