"""Is a router trained on cost cheaper at equal quality? Two models of one data order, side by side.

    python benchmarks/cost_trained.py --sdists sdists --out cost_trained.json

Both models of `data/models` predict the same text of the test split (of dev with `--split dev`)
in decode batches, routed plainly with k, k - 1 … 1 experts a row. For each point of the model
trained on cost it prints what the plain model pays at the same bits per byte, on the line between
its own k; 95 % intervals are of a bootstrap over decode batches, paired between the models. Bits,
active experts and bytes are exact for these models; latency and energy are the named table's
*predictions* for the same token counts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from costprof.core.errors import CostprofError
from costprof.core.files import write_json
from costprof.costmodel.table import CostTable
from costprof.runtime.small_lm.checkpoint import load_checkpoint
from costprof.runtime.small_lm.evaluate import Evaluation, evaluate, judged_text
from costprof.runtime.small_lm.model import SmallLM
from costprof.runtime.small_lm.text import packages_of, read_corpus

MODELS = Path(__file__).resolve().parents[1] / "data" / "models"
FIGURES = ("bits_per_byte", "active_experts", "weight_bytes", "padded_rows", "predicted_us",
           "predicted_mj", "gate_mass_lost")  # fmt: skip
RESAMPLES = 2000

Array = np.ndarray[Any, np.dtype[np.float64]]


def main() -> int:
    options = _parser().parse_args()
    torch.set_num_threads(1)
    try:
        corpus = read_corpus(packages_of(options.corpus), options.sdists)
        table = CostTable.shipped(options.table)
        models = {
            "plain": load_checkpoint(options.plain)[0],
            "cost": load_checkpoint(options.cost)[0],
        }
        length = models["plain"].config.context
        text, _ = judged_text(
            corpus, options.split, options.sequences, length=length, seed=options.seed
        )
        found = [
            compare(models, text, batch, table) for batch in options.batches if batch <= len(text)
        ]
    except CostprofError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for entry in found:
        _print(entry)
    write_json(
        options.out,
        {
            "split": options.split,
            "sequences": options.sequences,
            "seed": options.seed,
            "table": f"{options.table}, predictions for {table.manifest.device.name}",
            "batches": found,
        },
    )
    return 0


def compare(
    models: dict[str, SmallLM], text: torch.Tensor, batch: int, table: CostTable
) -> dict[str, Any]:
    """Evaluate both models at every k and price the one by the line of the other."""
    text = text[: len(text) // batch * batch]
    curves = {
        name: [
            by_batch(evaluate(model, text, batch=batch, table=table, top_k=k), batch)
            for k in range(model.config.top_k, 0, -1)
        ]
        for name, model in models.items()
    }
    points = {
        name: [
            {"top_k": len(curve) - i, **{key: float(value.mean()) for key, value in at.items()}}
            for i, at in enumerate(curve)
        ]
        for name, curve in curves.items()
    }
    resampled = np.random.default_rng(0).integers(
        0, len(text) // batch, size=(RESAMPLES, len(text) // batch)
    )
    for i, at in enumerate(curves["cost"]):
        for figure in ("active_experts", "predicted_us", "predicted_mj"):
            ratio = ratio_at_equal_bits(curves["plain"], at, figure, np.arange(len(text) // batch))
            draws = [ratio_at_equal_bits(curves["plain"], at, figure, r) for r in resampled]
            points["cost"][i][f"{figure}_ratio"] = [ratio, *np.quantile(draws, (0.025, 0.975))]
    return {"batch": batch, "decode_batches": len(text) // batch, **points}


def by_batch(found: Evaluation, batch: int) -> dict[str, Array]:
    """One value a decode batch of every figure."""
    values = {name: getattr(found, name).numpy() for name in FIGURES}
    values["bits_per_byte"] = values["bits_per_byte"].reshape(-1, batch).mean(axis=1)
    return values


def ratio_at_equal_bits(
    plain: Sequence[dict[str, Array]], other: dict[str, Array], figure: str, chosen: Array
) -> float:
    """`figure` of `other` over that of the plain model at the bits per byte `other` has.

    Between two k the plain model's line is straight (batches alternating between both); where
    `other` is better than the plain model's best, that best is what it is compared with.
    """
    bits = [float(at["bits_per_byte"][chosen].mean()) for at in plain]
    cost = [float(at[figure][chosen].mean()) for at in plain]
    equal = np.interp(float(other["bits_per_byte"][chosen].mean()), bits, cost)
    return float(other[figure][chosen].mean() / equal)


def _print(entry: dict[str, Any]) -> None:
    print(f"batch {entry['batch']} ({entry['decode_batches']} of them)")
    for name in ("plain", "cost"):
        for at in entry[name]:
            line = (
                f"  {name:<5} k={at['top_k']}  {at['bits_per_byte']:.4f} bits/byte  "
                f"{at['active_experts']:5.1f} active  {at['weight_bytes'] / 1e6:.2f} MB  "
                f"{at['padded_rows']:6.1f} padded rows  {at['predicted_us']:6.1f} us  "
                f"{at['predicted_mj']:6.2f} mJ predicted"
            )
            if "predicted_us_ratio" in at:
                mid, low, high = at["predicted_us_ratio"]
                line += f"  at equal bits x{mid:.3f} us [{low:.3f}, {high:.3f}]"
                mid, low, high = at["active_experts_ratio"]
                line += f", x{mid:.3f} active [{low:.3f}, {high:.3f}]"
            print(line)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sdists", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, default=MODELS / "corpus.json")
    parser.add_argument("--plain", type=Path, default=MODELS / "bytes-64x4.safetensors")
    parser.add_argument("--cost", type=Path, default=MODELS / "bytes-64x4-cost.safetensors")
    parser.add_argument("--table", default="OLMoE-1B-7B", help="a shipped table of 64 experts")
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    parser.add_argument("--sequences", type=int, default=384)
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    sys.exit(main())
