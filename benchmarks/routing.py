"""Which routing policy is cheapest at equal quality? On a real, small MoE language model.

    python benchmarks/routing.py --sdists DIR --out out/routing.json --page out/routing.html

Every policy, in several settings, decodes held-out text with `data/models/bytes-64x4.safetensors`
(64 experts, top-4) in batches of 4 to 256 sequences. Exact: bits per byte, active experts, weight
bytes, padded rows. Predicted: µs and mJ, by the shipped H200 table of OLMoE-1B-7B, which has 64
experts too: what the same token counts would cost there.

Settings are tried on the *dev* split: 90 of `marginal`, 40 of `lynx`, up to 12 of the others, which
have fewer knobs or keep some as they are. Judged on the *test* split, on `--draws` draws of text,
all on the same text, are those on each policy's curve on dev and, of each, the one of fewest weight
bytes whose bits per byte rise by at most `--quality` there. Plain top-k with fewer experts is a
policy like all others. Printed for the chosen: ratios to plain top-k and to `marginal`. Printed for
the curves: each policy's weight bytes over `marginal`'s at equal bits per byte, the least of its
settings, with paired bootstrap intervals over batches (`routing_steps/pareto.py`): "dominated"
where the whole interval lies above 1, "cheaper" where below. All of it is of curves in weight
bytes; µs and mJ are given for the same settings.

`--show FILE...` prints again what `--out` wrote; `--page` draws all of it, `--picture` weight bytes
alone.

`--prefill` rounds the token counts of prompts to tiles instead (`tile_round`, with prompts changed
by their own later tokens: not causal, for offline work): predicted µs, tiles, gate mass lost.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from routing_steps.page import page
from routing_steps.pareto import (
    OURS,
    PLAIN,
    choose,
    chosen_intervals,
    corners,
    means,
    over_ours,
    policy_of,
    verdict,
)
from routing_steps.picture import picture
from routing_steps.prefill import prefill
from routing_steps.settings import Entry, entries

from costprof.costmodel.compatibility import TableDriftWarning
from costprof.costmodel.table import CostTable
from costprof.runtime.small_lm.checkpoint import load_checkpoint
from costprof.runtime.small_lm.evaluate import evaluate, judged_text
from costprof.runtime.small_lm.model import SmallLM
from costprof.runtime.small_lm.text import Corpus, packages_of, read_corpus

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "data/models/bytes-64x4.safetensors"
PACKAGES = ROOT / "data/models/corpus.json"
TABLE = "OLMoE-1B-7B"
BATCHES = (4, 16, 32, 64, 256)
DEV_SEQUENCES = 192


def main() -> None:
    """Evaluate, choose on dev, judge on test, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sdists", type=Path, help="folder of the packages in corpus.json")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--packages", type=Path, default=PACKAGES)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--page", type=Path, help="an HTML page of the curves")
    parser.add_argument("--picture", type=Path, help="an SVG file of the curves")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--sequences", type=int, default=64, help="at least, on each draw")
    parser.add_argument("--bytes", type=int, default=96, help="predicted of each sequence")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1, help="of the test text")
    parser.add_argument("--quality", type=float, default=0.01, help="bits per byte given, a share")
    parser.add_argument("--policies", nargs="+", help="only these, besides top-k and marginal")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--show", type=Path, nargs="+", help="print what --out wrote")
    parser.add_argument("--prefill", action="store_true", help="round prompts to tiles")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore", TableDriftWarning)
    report: dict[str, Any] = {"model": arguments.model.name, "table": TABLE, "batches": {}}
    if arguments.show:
        for path in arguments.show:
            report["batches"] |= json.loads(path.read_text())["batches"]
        for batch, found in report["batches"].items():
            print_batch(int(batch), found)
    else:
        if arguments.sdists is None:
            sys.exit("name the folder of the source distributions with --sdists")
        corpus = read_corpus(packages_of(arguments.packages), arguments.sdists)
        model, _ = load_checkpoint(arguments.model)
        if arguments.prefill:
            prefill(model, corpus, CostTable.shipped(TABLE))
            return
        for batch in arguments.batches:
            report["batches"][str(batch)] = one_batch(model, corpus, batch, arguments)
            if arguments.out:
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                arguments.out.write_text(json.dumps(report, indent=1))
            print_batch(batch, report["batches"][str(batch)])
    if arguments.page:
        arguments.page.parent.mkdir(parents=True, exist_ok=True)
        arguments.page.write_text(page(report), encoding="utf-8")
    if arguments.picture:
        arguments.picture.parent.mkdir(parents=True, exist_ok=True)
        drawn = sorted(map(int, report["batches"]))
        arguments.picture.write_text(picture(report, drawn), encoding="utf-8")


def one_batch(
    model: SmallLM, corpus: Corpus, batch: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Return all settings on dev, and the judged ones on every draw of test."""
    table = CostTable.shipped(TABLE)
    sequences = -(-arguments.sequences // batch) * batch

    def text(split: str, seed: int, count: int) -> torch.Tensor:
        return judged_text(corpus, split, count, length=arguments.bytes, seed=seed)[0]

    def figures(entry: Entry, on: torch.Tensor) -> dict[str, list[float]]:
        found = evaluate(model, on, batch=batch, table=table, policy=entry.made, top_k=entry.top_k)
        return {
            field.name: getattr(found, field.name).tolist() for field in dataclasses.fields(found)
        }

    dev = text("dev", 0, -(-DEV_SEQUENCES // batch) * batch)
    made = {
        entry.name: entry
        for entry in entries(model, table, dev, batch)
        if not arguments.policies or entry.policy in (PLAIN, OURS, *arguments.policies)
    }
    tried = {name: means(figures(entry, dev)) for name, entry in made.items()}
    chosen = choose(tried, arguments.quality)
    judged: dict[str, dict[str, list[float]]] = {}
    # One draw in parts, so that no two of them share text.
    test = text("test", arguments.seed, arguments.draws * sequences)
    for sample in torch.split(test, sequences):
        for name in dict.fromkeys([PLAIN, *chosen.values(), *corners(tried)]):
            into = judged.setdefault(name, {})
            for key, values in figures(made[name], sample).items():
                into.setdefault(key, []).extend(values)
    return {
        "quality": arguments.quality,
        "sequences": sequences,
        "draws": arguments.draws,
        "dev": tried,
        "chosen": chosen,
        "test": {name: means(each) for name, each in judged.items()},
        "intervals": chosen_intervals(judged, chosen.values(), chosen[OURS], batch),
        "over_marginal": over_ours(judged, batch),
    }


def print_batch(batch: int, found: dict[str, Any]) -> None:
    """Print the chosen settings, the cheapest first, and the curves against ours."""
    print(
        f"\nbatch {batch}; {found['draws']} draws of {found['sequences']} sequences; setting "
        f"chosen on dev (bits per byte at most +{found['quality']:.1%}), on test:"
    )
    print(
        f"{'policy':38} {'bits':>6} {'bits/top-k':>22} {'active':>6} {'padded':>7} "
        f"{'bytes/top-k':>22} {'bytes/marginal':>22} {'us':>6} {'mJ':>6}  (us, mJ predicted)"
    )
    for name in sorted(
        found["chosen"].values(), key=lambda name: found["test"][name]["weight_bytes"]
    ):
        mean, ratio = found["test"][name], found["intervals"][name]
        print(
            f"{name:38} {mean['bits_per_byte']:6.3f} {_band(ratio['bits_to_topk'])} "
            f"{mean['active_experts']:6.1f} {mean['padded_rows']:7.0f} "
            f"{_band(ratio['bytes_to_topk'])} {_band(ratio['bytes_to_marginal'])} "
            f"{mean['predicted_us']:6.1f} {mean['predicted_mj']:6.1f}"
        )
    print(
        "cost over marginal's at equal bits on test, each policy's setting of least weight bytes:"
    )
    print(f"  {'':38} {'loss':>7} {'weight bytes':>22} {'us (predicted)':>22}")
    plain = found["test"][PLAIN]["bits_per_byte"]
    for name in nearest(found["over_marginal"]):
        ratio = found["over_marginal"][name]
        loss = found["test"][name]["bits_per_byte"] / plain - 1.0
        print(
            f"  {name:38} {loss:7.2%} {_band(ratio['weight_bytes'])} "
            f"{_band(ratio['predicted_us'])}  {verdict(ratio['weight_bytes'])}"
        )
    verdicts = Counter(verdict(each["weight_bytes"]) for each in found["over_marginal"].values())
    print(f"  of {verdicts.total()} settings: {', '.join(f'{n} {v}' for v, n in verdicts.items())}")
    sys.stdout.flush()


def nearest(ratios: dict[str, dict[str, list[float]]]) -> list[str]:
    """Return of each policy the setting that comes nearest to ours, or farthest below."""
    best: dict[str, str] = {}
    for name in sorted(ratios, key=lambda name: ratios[name]["weight_bytes"][1]):
        best.setdefault(policy_of(name), name)
    return list(best.values())


def _band(values: list[float]) -> str:
    low, mid, high = values
    return f"{mid:6.4f} ({low:6.4f}-{high:6.4f})"


if __name__ == "__main__":
    main()
