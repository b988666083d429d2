"""Which routing policy is cheapest at equal quality? On a real, small MoE language model.

    python benchmarks/routing.py --sdists DIR --out out/routing.json

Every policy, in several settings, decodes held-out text with `data/models/bytes-64x4.safetensors`
(64 experts, top-4) in batches of 4 to 256 sequences. Exact: bits per byte, active experts, weight
bytes, padded rows. Predicted: µs and mJ, by the shipped H200 table of OLMoE-1B-7B, which has 64
experts too: what the same token counts would cost there.

For each policy and batch the setting is chosen on the *dev* split: the one of fewest weight bytes
whose bits per byte rise by at most `--quality` there. It is judged on the *test* split, on as many
draws of text as there are seeds, all policies on the same text. Intervals are paired
bootstraps over batches of sequences: ratios of a policy's bits and bytes to plain top-k's, and
of its bytes to `marginal`'s. Plain top-k with fewer experts is a policy like all others.

Printed as well is how far each policy's curve on dev lies from `marginal`'s: weight bytes of each
of its settings over those of `marginal` at equal bits per byte (between two of its settings: some
batches with one, some with the other), the least of them. Below 1 a policy is cheaper somewhere.
`--show FILE` prints again what `--out` wrote.

`--prefill` rounds the token counts of prompts to tiles instead (`tile_round`, with prompts changed
by their own later tokens: not causal, for offline work): predicted µs, tiles, gate mass lost.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from costprof.costmodel.compatibility import TableDriftWarning
from costprof.costmodel.table import CostTable
from costprof.routing import POLICIES, Rows, TopK, route, static_optimal
from costprof.routing.contract import Policy
from costprof.runtime.small_lm.checkpoint import load_checkpoint
from costprof.runtime.small_lm.evaluate import Evaluation, evaluate, judged_text
from costprof.runtime.small_lm.model import SmallLM
from costprof.runtime.small_lm.text import Corpus, packages_of, read_corpus

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "data/models/bytes-64x4.safetensors"
PACKAGES = ROOT / "data/models/corpus.json"
TABLE = "OLMoE-1B-7B"
BATCHES = (4, 16, 32, 64, 256)
_RESAMPLES = 2000


@dataclass(frozen=True)
class Entry:
    """A policy in one setting; `top_k` is for plain routing to fewer experts."""

    policy: str
    setting: str
    made: Policy
    top_k: int | None = None


def entries(model: SmallLM, table: CostTable, text: torch.Tensor, batch: int) -> list[Entry]:
    """Return all settings that are tried; the fixed set is chosen for dev text's own logits."""
    found = [Entry("topk", "", TopK())]
    found += [Entry("fewer", f"k={k}", TopK(), k) for k in (1, 2, 3)]
    grid: dict[str, list[dict[str, Any]]] = {
        "marginal": [
            {"q": q, "lam": lam}
            for q in (0.5, 0.6, 0.7, 0.8)
            for lam in (0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.6)
        ],
        "oea": [{"k0": k} for k in (1, 2, 3)],
        "budget": [{"experts": n} for n in (8, 12, 16, 20, 24, 28, 32, 40, 48)],
        "lynx": [
            {"drop": drop, "affinity": affinity}
            for drop in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
            for affinity in (0.1, 0.15, 0.2, 0.25, 0.3)
        ],
        "cache_prior": [{"lam": lam} for lam in (0.05, 0.1, 0.2, 0.4, 0.8)],
        "skip": [{"beta": beta} for beta in (0.1, 0.2, 0.3, 0.5)],
        "statistical_balance": [{"rate": rate} for rate in (0.0003, 0.001, 0.003)],
        "prune": [{"share": share} for share in (0.1, 0.25, 0.5)],
        "tile_round": [{"block_m": m, "q": q} for m in (4, 16) for q in (0.6, 0.8, 0.9)],
    }
    for name, settings in grid.items():
        for each in settings:
            label = ",".join(f"{key}={value:g}" for key, value in each.items())
            found.append(Entry(name, label, POLICIES[name](**each)))
    logits = recorded_logits(model, text, batch)
    for mass_lost in (0.01, 0.03, 0.1):
        fixed = static_optimal(logits, table=table, gate=model.config.gate, mass_lost=mass_lost)
        found.append(Entry("static_optimal", f"mass_lost={mass_lost:g}", fixed))
    return found


@torch.inference_mode()
def recorded_logits(model: SmallLM, text: torch.Tensor, batch: int) -> list[torch.Tensor]:
    """Return router logits [B, E] of some decode batches of all layers."""
    return [
        each for layer in layer_logits(model, text[:batch]) for each in layer[:, ::16].unbind(1)
    ]


@torch.inference_mode()
def layer_logits(model: SmallLM, text: torch.Tensor) -> list[torch.Tensor]:
    """Return the router logits [B, T, E] of each layer under plain routing."""
    found: list[torch.Tensor] = []
    gate = model.config.gate

    def keep(layer: int, logits: torch.Tensor) -> Any:
        from costprof.routing.gate import select
        from costprof.runtime.small_lm.model import Routed

        found.append(logits)
        chosen = select(logits.flatten(0, 1), gate)
        shape = (*logits.shape[:2], -1)
        return Routed(
            indices=chosen.indices.view(shape),
            weights=chosen.weights.view(shape),
            used=chosen.used.view(shape),
        )

    model(text[:, :-1], keep)
    return found


def figures(found: Evaluation) -> dict[str, Any]:
    """Return one evaluation as plain values: bits by sequence, all else by batch."""
    return {
        name: getattr(found, name).tolist()
        for name in (
            *("bits_per_byte", "active_experts", "weight_bytes", "rows", "padded_rows"),
            *("predicted_us", "predicted_mj", "gate_mass_lost"),
        )
    }


def means(each: dict[str, Any]) -> dict[str, float]:
    """Return the mean of every figure."""
    return {name: statistics.fmean(values) for name, values in each.items()}


def main() -> None:
    """Evaluate, choose on dev, judge on test, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sdists", type=Path, help="folder of the packages in corpus.json")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--packages", type=Path, default=PACKAGES)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--sequences", type=int, default=64, help="at least, on each draw")
    parser.add_argument("--bytes", type=int, default=96, help="predicted of each sequence")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quality", type=float, default=0.01, help="bits per byte given, a share")
    parser.add_argument("--policies", nargs="+", help="only these, besides top-k and marginal")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--show", type=Path, nargs="+", help="print what --out wrote")
    parser.add_argument("--prefill", action="store_true", help="round prompts to tiles")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore", TableDriftWarning)
    if arguments.show:
        for path in arguments.show:
            for batch, found in json.loads(path.read_text())["batches"].items():
                print_batch(int(batch), found, arguments.quality)
        return
    if arguments.sdists is None:
        sys.exit("name the folder of the source distributions with --sdists")
    corpus = read_corpus(packages_of(arguments.packages), arguments.sdists)
    model, _ = load_checkpoint(arguments.model)
    if arguments.prefill:
        prefill(model, corpus)
        return
    report: dict[str, Any] = {"model": arguments.model.name, "table": TABLE, "batches": {}}
    for batch in arguments.batches:
        report["batches"][batch] = one_batch(model, corpus, batch, arguments)
        if arguments.out:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(report, indent=1))
        print_batch(batch, report["batches"][batch], arguments.quality)


def one_batch(
    model: SmallLM, corpus: Corpus, batch: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Return all settings on dev, and the chosen ones on every draw of test."""
    table = CostTable.shipped(TABLE)
    sequences = -(-arguments.sequences // batch) * batch

    def text(split: str, seed: int) -> torch.Tensor:
        return judged_text(corpus, split, sequences, length=arguments.bytes, seed=seed)[0]

    dev = text("dev", 0)
    tried: dict[str, dict[str, float]] = {}
    made: dict[str, Entry] = {}
    for entry in entries(model, table, dev, batch):
        if arguments.policies and entry.policy not in ("topk", "marginal", *arguments.policies):
            continue
        name = f"{entry.policy} {entry.setting}".strip()
        made[name] = entry
        found = evaluate(model, dev, batch=batch, table=table, policy=entry.made, top_k=entry.top_k)
        tried[name] = means(figures(found))
    chosen = choose(tried, made, arguments.quality)
    judged: dict[str, dict[str, list[float]]] = {}
    for seed in range(1, arguments.seeds + 1):
        sample = text("test", seed)
        for name in chosen.values():
            entry = made[name]
            found = evaluate(
                model, sample, batch=batch, table=table, policy=entry.made, top_k=entry.top_k
            )
            into = judged.setdefault(name, {})
            for key, values in figures(found).items():
                into.setdefault(key, []).extend(values)
    return {
        "dev": tried,
        "chosen": chosen,
        "test": {name: means(each) for name, each in judged.items()},
        "intervals": {
            policy: intervals(judged, name, chosen["topk"], chosen["marginal"], batch)
            for policy, name in chosen.items()
        },
    }


def choose(
    tried: dict[str, dict[str, float]], made: dict[str, Entry], quality: float
) -> dict[str, str]:
    """Return the setting of each policy: of fewest weight bytes within the quality, on dev.

    A policy without such a setting takes the one nearest to it.
    """
    allowed = tried["topk"]["bits_per_byte"] * (1.0 + quality)
    chosen = {}
    for policy in dict.fromkeys(entry.policy for entry in made.values()):
        own = [name for name, entry in made.items() if entry.policy == policy]
        within = [name for name in own if tried[name]["bits_per_byte"] <= allowed]
        chosen[policy] = (
            min(within, key=lambda name: tried[name]["weight_bytes"])
            if within
            else min(own, key=lambda name: tried[name]["bits_per_byte"])
        )
    return chosen


def intervals(
    judged: dict[str, dict[str, list[float]]], name: str, plain: str, ours: str, batch: int
) -> dict[str, list[float]]:
    """Return (p2.5, median, p97.5) of ratios, by a paired bootstrap over batches of sequences."""
    rng = np.random.default_rng(0)
    blocks = len(judged[plain]["weight_bytes"])
    draws = rng.integers(0, blocks, (_RESAMPLES, blocks))

    def total(who: str, key: str) -> np.ndarray:
        values = np.array(judged[who][key])
        if key == "bits_per_byte":
            values = values.reshape(blocks, batch).mean(axis=1)
        return values[draws].sum(axis=1)

    ratios = {
        "bits_to_topk": total(name, "bits_per_byte") / total(plain, "bits_per_byte"),
        "bits_to_marginal": total(name, "bits_per_byte") / total(ours, "bits_per_byte"),
        "bytes_to_topk": total(name, "weight_bytes") / total(plain, "weight_bytes"),
        "bytes_to_marginal": total(name, "weight_bytes") / total(ours, "weight_bytes"),
        "us_to_topk": total(name, "predicted_us") / total(plain, "predicted_us"),
        "mj_to_topk": total(name, "predicted_mj") / total(plain, "predicted_mj"),
    }
    return {key: np.quantile(value, [0.025, 0.5, 0.975]).tolist() for key, value in ratios.items()}


def print_batch(batch: int, found: dict[str, Any], quality: float) -> None:
    """Print the judged settings, the cheapest first."""
    print(
        f"\nbatch {batch}; setting chosen on dev (bits per byte at most +{quality:.1%}), on test:"
    )
    print(
        f"{'policy':38} {'bits':>6} {'bits/top-k':>22} {'active':>6} {'padded':>7} "
        f"{'bytes/top-k':>22} {'bytes/marginal':>22} {'us':>6} {'mJ':>6}  (us, mJ predicted)"
    )
    for policy in sorted(
        found["chosen"], key=lambda p: found["test"][found["chosen"][p]]["weight_bytes"]
    ):
        name = found["chosen"][policy]
        mean, ratio = found["test"][name], found["intervals"][policy]
        print(
            f"{name:38} {mean['bits_per_byte']:6.3f} {_band(ratio['bits_to_topk'])} "
            f"{mean['active_experts']:6.1f} {mean['padded_rows']:7.0f} "
            f"{_band(ratio['bytes_to_topk'])} {_band(ratio['bytes_to_marginal'])} "
            f"{mean['predicted_us']:6.1f} {mean['predicted_mj']:6.1f}"
        )
    print("least weight bytes over marginal's at equal bits, on dev:")
    for ratio, name in sorted(at_equal_bits(found["dev"]).values()):
        print(f"  {name:38} {ratio:6.3f}")
    sys.stdout.flush()


def at_equal_bits(tried: dict[str, dict[str, float]]) -> dict[str, tuple[float, str]]:
    """Return by policy the least bytes over `marginal`'s at equal bits, and the setting."""
    ours = [each for name, each in tried.items() if name.split()[0] in ("topk", "marginal")]
    corners = sorted((each["bits_per_byte"], each["weight_bytes"]) for each in ours)
    hull: list[tuple[float, float]] = []
    for point in corners:
        while hull and (point[1] >= hull[-1][1] or _above(hull, point)):
            if point[1] >= hull[-1][1]:
                break
            hull.pop()
        else:
            hull.append(point)
    bits, size = (np.array(column) for column in zip(*hull, strict=True))
    found: dict[str, tuple[float, str]] = {}
    for name, each in tried.items():
        policy = name.split()[0]
        if policy in ("topk", "marginal") or not bits[0] <= each["bits_per_byte"] <= bits[-1]:
            continue
        ratio = each["weight_bytes"] / float(np.interp(each["bits_per_byte"], bits, size))
        found[policy] = min(found.get(policy, (np.inf, "")), (ratio, name))
    return found


def _above(hull: list[tuple[float, float]], point: tuple[float, float]) -> bool:
    """Say if the last corner lies above the line from the one before it to `point`."""
    if len(hull) < 2:
        return False
    (x0, y0), (x1, y1) = hull[-2:]
    return (y1 - y0) * (point[0] - x0) >= (point[1] - y0) * (x1 - x0)


def _band(values: list[float]) -> str:
    low, mid, high = values
    return f"{mid:6.4f} ({low:6.4f}-{high:6.4f})"


def prefill(model: SmallLM, corpus: Corpus, draws: int = 4, length: int = 256) -> None:
    """Print what rounding prompts to tiles is predicted to save, by prompts at once."""
    table = CostTable.shipped(TABLE)
    print("tile_round on prompts; exact: tiles, gate mass lost; speed-up predicted, mean (least)")
    for prompts in (1, 4, 8):
        text = judged_text(corpus, "test", prompts * draws, length=length, seed=1)[0]
        batches = [
            logits.flatten(0, 1)
            for part in torch.split(text, prompts)
            for logits in layer_logits(model, part)
        ]
        tokens = prompts * length
        rows = Rows(
            real=torch.ones(tokens, dtype=torch.bool),
            sequence=torch.arange(prompts).repeat_interleave(length),
            position=torch.arange(length).repeat(prompts),
            is_prefill=torch.ones(tokens, dtype=torch.bool),
        )
        for block_m in (16, 64):
            for q in (0.9, 0.8):
                policy = POLICIES["tile_round"](block_m=block_m, q=q, prefill=True)
                gains, padded, lost = [], [], []
                for logits in batches:
                    plain, rounded = (
                        route(logits, table=table, gate=model.config.gate, policy=each, rows=rows)
                        for each in (TopK(), policy)
                    )
                    pads = [(-(-each.counts // block_m)).sum().item() for each in (plain, rounded)]
                    gains.append(float(plain.predicted.latency_us / rounded.predicted.latency_us))
                    padded.append(pads[1] / pads[0])
                    lost.append(float(rounded.gate_mass_lost.mean()))
                print(
                    f"{tokens:5} tokens, BLOCK_M {block_m:3}, q={q}: speed-up "
                    f"{statistics.fmean(gains):.3f} ({min(gains):.3f}), tiles "
                    f"{statistics.fmean(padded):.3f}, mass lost {statistics.fmean(lost):.3f}"
                )


if __name__ == "__main__":
    main()
