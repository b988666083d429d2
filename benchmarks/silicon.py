"""The model of whole layers on public measurements: each figure beside its baselines, in one run.

    python benchmarks/silicon.py --data DIR [--split token --split shape ...]

DIR holds aiconfigurator's Parquet files of MoE layers. Aims and what they are measured against:

- token: latency at most 2.5 % MAPE (linear in tokens 3.7), energy at most 6 % (7.9);
- sparse:0.1: latency at most 4.5 % (random + boosting 6.6);
- shape: latency at most 6 % MAPE and 3.5 % median (boosting 9.0 / 5.3), energy of calls of 0.34 ms
  or more at most 10 %, better than constant TDP, on uncapped rows too;
- fewshot:5: latency at most 3.5 % (boosting + interpolated residual 5.6);
- 90 % intervals hold 87 to 93 % in each; the least-energy choice agrees in 95 % or more and is at
  most 1 % dearer; a fit of 35,000 layers takes at most 3 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from costprof.costmodel.evaluation.figures import figures_of
from costprof.costmodel.evaluation.frame import held_out_layers
from costprof.costmodel.fit import fit_dataset
from costprof.profiler.public import ingest_public_file

FILE = "h200_moe_latency_power_vllm-0.22.parquet"
SPLITS = ("token", "sparse:0.1", "shape", "fewshot:5")


def main() -> None:
    """Fit, then evaluate every split, printing as it goes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--file", default=FILE)
    parser.add_argument("--split", action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        dataset = Path(scratch) / "dataset"
        ingest_public_file(options.data / options.file, dataset)
        began = time.monotonic()
        fitted = fit_dataset(dataset)
        print(f"fit of {fitted.rows.num_rows} layers: {time.monotonic() - began:.0f} s (measured)")
        for split in options.split or SPLITS:
            found[split] = figures_of(held_out_layers(dataset, split, seed=options.seed))
            show(split, found[split])
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))


def show(split: str, figures: dict[str, object]) -> None:
    """Print one split's figures, a line a method and subset."""
    for quantity in ("latency", "energy"):
        subsets = figures.get(quantity, {})
        assert isinstance(subsets, dict)
        for subset, methods in subsets.items():
            for method, errors in methods.items():
                covered = errors.get("coverage_90")
                held = "" if covered is None else f"  90 % intervals hold {covered:.1f} %"
                print(
                    f"{split:11} {quantity:8} {subset:32} {method:28} n {errors['layers']:6}  "
                    f"MAPE {errors['mape']:6.2f}  median {errors['median']:6.2f}  "
                    f"p90 {errors['p90']:6.2f}{held}",
                    flush=True,
                )
    print(f"{split:11} least-energy choice: {figures.get('least_energy_choice')}", flush=True)


if __name__ == "__main__":
    main()
