"""How well does a sum over experts price whole layers, of models nobody measured?

    python benchmarks/additive.py --table T.parquet        # what costprof fit made of whole layers

For every shape, kernel and precision measured on one rank, `base + Σ f(n)` is fitted as `costprof
table predict` does, by the model's parts that have not seen the shape and without its readings, and
compared with the measured layers: their counts are drawn again by the generator's rules. Beside it
stand the model itself without the sum in between, and what a router would take without a table:
bytes of the active experts, scaled by the best factor of the shape (which has seen the truth).
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from costprof.costmodel.grouped.additive import Batch, example_batches, fit_additive, knots_for
from costprof.costmodel.grouped.model import WHOLE, GroupedModel
from costprof.costmodel.grouped.points import LayerPoints
from costprof.costmodel.grouped.rows import measured_of_table
from costprof.costmodel.grouped.serialise import from_bytes
from costprof.costmodel.grouped.token_counts import load_of_counts, rank_counts
from costprof.costmodel.tablefile import read_table

DECODE_TOKENS = 256


def main() -> None:
    """Price every measured group and print the errors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, required=True)
    file = read_table(parser.parse_args().table)
    model, measured = from_bytes(file.model), measured_of_table(file.rows)
    if measured is None:
        raise SystemExit("the table holds no measured layers")
    points = measured.points
    single = np.flatnonzero((points.ep_size == 1) & (points.tp_size == 1))
    tokens, off = [], {name: [] for name in ("sum of experts", "model itself", "bytes, scaled")}
    energies: dict[str, list[np.ndarray]] = {
        name: [] for name in ("sum of experts", "model itself")
    }
    for group in np.unique(points.group[single]):
        own = measured.take(single[points.group[single] == group])
        unseen = without_shape(model, str(own.points.shape[0]))
        batches = batches_of(own.points)
        examples = example_batches(int(own.points.experts[0]), int(own.points.top_k[0]))
        prediction = unseen.predict(points_of(own.points, examples))
        knots = knots_for([*examples, *batches])
        additive = fit_additive(examples, prediction.latency_us[1], knots)
        whole = unseen.predict(own.points)
        active = own.points.load.active
        tokens.append(own.points.tokens)
        off["sum of experts"].append(np.abs(additive.price(batches) / own.latency_us - 1))
        off["model itself"].append(np.abs(whole.latency_us[1] / own.latency_us - 1))
        scale = np.median(own.latency_us / active)
        off["bytes, scaled"].append(np.abs(scale * active / own.latency_us - 1))
        known = np.isfinite(own.power_w) & (own.latency_us >= 340.0)
        if known.any():
            energy = fit_additive(examples, prediction.energy_mj[1], knots).price(batches)
            truth = own.power_w * own.latency_us * 1e-3
            energies["sum of experts"].append(np.abs(energy / truth - 1)[known])
            energies["model itself"].append(np.abs(whole.energy_mj[1] / truth - 1)[known])
    few = np.concatenate(tokens) <= DECODE_TOKENS
    print(f"{len(few)} layers of {len(tokens)} groups; errors in percent: mean / median / p90")
    for name, each in off.items():
        errors = np.concatenate(each)
        print(
            f"latency, {name:15} all {figures(errors)}   "
            f"to {DECODE_TOKENS} tokens {figures(errors[few])}   more {figures(errors[~few])}"
        )
    for name, each in energies.items():
        if each:
            print(f"energy >= 0.34 ms, {name:15} {figures(np.concatenate(each))}")


def without_shape(model: GroupedModel, shape: str) -> GroupedModel:
    """Return the model of the fold that has not seen `shape`."""
    part = model.parts[model.fold_of_shape.get(shape, WHOLE)]
    return dataclasses.replace(model, parts={WHOLE: part}, fold_of_shape={})


def batches_of(points: LayerPoints) -> list[Batch]:
    """Return the batches behind measured layers, drawn again."""
    columns = zip(
        points.tokens.astype(int).tolist(),
        points.experts.astype(int).tolist(),
        points.top_k.astype(int).tolist(),
        points.distribution.tolist(),
        strict=True,
    )
    return [Batch(t, name, rank_counts(t, e, k, 1, name)) for t, e, k, name in columns]


def points_of(points: LayerPoints, batches: list[Batch]) -> LayerPoints:
    """Return `batches` run on the layer that all `points` are of."""
    first = points.take(np.zeros(len(batches), dtype=np.int64))
    asked = dataclasses.replace(
        first,
        tokens=np.array([float(batch.tokens) for batch in batches]),
        distribution=np.array([batch.distribution for batch in batches]),
    )
    return asked.with_load(load_of_counts([batch.counts for batch in batches]))


def figures(errors: np.ndarray) -> str:
    """Return mean, median and 90th percentile of relative errors, in percent."""
    percent = 100 * errors
    return f"{percent.mean():5.1f} / {np.median(percent):4.1f} / {np.quantile(percent, 0.9):5.1f}"


if __name__ == "__main__":
    main()
