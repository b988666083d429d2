"""Train the small language model on the pinned text, with or without a price on its routing.

    python benchmarks/train_lm.py --sdists sdists --out data/models/bytes-64x4.safetensors
    python benchmarks/train_lm.py --sdists sdists --cost-weight 0.1 --table OLMoE-1B-7B \
        --out data/models/bytes-64x4-cost.safetensors

`--sdists` holds the source distributions that `data/models/corpus.json` pins; `--fetch` downloads
what is missing from the Python package index. The state beside `--out` (`.state.safetensors`) lets
an interrupted run go on; every `--save-every` steps the model as it is becomes the checkpoint, so
that a run that is cut off leaves one. Bits per byte of the dev split are printed on the way, those
of dev and test stand in the manifest.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from sdists import fetch_missing

from costprof.core.device import software_versions
from costprof.core.errors import CostprofError
from costprof.costmodel.table import CostTable
from costprof.runtime.small_lm.checkpoint import load_checkpoint, read_manifest, save_checkpoint
from costprof.runtime.small_lm.model import SmallLMConfig
from costprof.runtime.small_lm.quality import bits_per_byte
from costprof.runtime.small_lm.text import Corpus, packages_of, read_corpus
from costprof.runtime.small_lm.training import Trainer, TrainingOptions

CORPUS = Path(__file__).resolve().parents[1] / "data" / "models" / "corpus.json"
DEV_SEQUENCES, JUDGED_SEQUENCES = 32, 256  # a domain


def main() -> int:
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    try:
        packages = packages_of(options.corpus)
        if options.fetch:
            fetch_missing(packages, options.sdists)
        corpus = read_corpus(packages, options.sdists)
        table = CostTable.shipped(options.table) if options.cost_weight else None
        how = TrainingOptions(
            seed=options.seed,
            steps=options.steps,
            cost_weight=options.cost_weight,
            cost_batch=options.cost_batch,
        )
        trainer = Trainer(SmallLMConfig(), how, table)
        train(trainer, corpus, options)
    except CostprofError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def train(trainer: Trainer, corpus: Corpus, options: argparse.Namespace) -> None:
    """Train to the last step from where the state, if there is one, left off."""
    state = options.out.with_suffix(".state.safetensors")
    minutes = 0.0
    if state.exists():
        trainer.resume(state)
        if options.out.with_suffix(".json").exists():
            minutes = read_manifest(options.out.with_suffix(".json")).training["minutes"]
        print(f"goes on from step {trainer.step}", flush=True)
    begin = time.monotonic() - 60 * minutes
    while trainer.step < trainer.options.steps:
        losses = trainer.train_step(corpus)
        if trainer.step % 25 == 0:
            print(
                json.dumps({"step": trainer.step, **asdict(losses), "s": time.monotonic() - begin}),
                flush=True,
            )
        if trainer.step % options.save_every == 0 or trainer.step == trainer.options.steps:
            trainer.save(state)
            _write(trainer, corpus, options, (time.monotonic() - begin) / 60, DEV_SEQUENCES)
    model, manifest = load_checkpoint(options.out)
    trainer.model = model  # as rounded: what is judged is what is written
    _write(trainer, corpus, options, manifest.training["minutes"], JUDGED_SEQUENCES)


def _write(
    trainer: Trainer, corpus: Corpus, options: argparse.Namespace, minutes: float, sequences: int
) -> None:
    splits = ("dev", "test") if sequences == JUDGED_SEQUENCES else ("dev",)
    quality = {
        split: bits_per_byte(trainer.model, corpus, split, sequences=sequences) for split in splits
    }
    print(json.dumps({"step": trainer.step, **quality}), flush=True)
    how = trainer.options
    save_checkpoint(
        trainer.model,
        options.out,
        command=shlex.join(["python", "benchmarks/train_lm.py", *_told(options)]),
        training={
            **asdict(how),
            "table": options.table if how.cost_weight else None,
            "steps_made": trainer.step,
            "tokens": trainer.step * how.sequences * trainer.model.config.context,
            "minutes": round(minutes, 2),
            "threads": options.threads,
            "software": software_versions(),
            "judged_sequences_per_domain": sequences,
        },
        corpus={
            "files_sha256": corpus.sha256,
            "packages": json.loads(options.corpus.read_text(encoding="utf-8"))["packages"],
            "bytes": {f"{split} {domain}": len(s) for (split, domain), s in corpus.streams.items()},
        },
        bits_per_byte=quality,
    )


def _told(options: argparse.Namespace) -> list[str]:
    """The arguments that decide what is trained, without folders of this machine."""
    told = ["--sdists", "sdists", "--seed", str(options.seed), "--steps", str(options.steps)]
    if options.cost_weight:
        told += ["--cost-weight", str(options.cost_weight), "--table", options.table]
        told += ["--cost-batch", str(options.cost_batch)]
    return [*told, "--out", f"data/models/{options.out.name}"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sdists", type=Path, required=True)
    parser.add_argument("--fetch", action="store_true")
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=TrainingOptions().steps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cost-weight", type=float, default=0.0)
    parser.add_argument("--cost-batch", type=int, default=16)
    parser.add_argument("--table", default="OLMoE-1B-7B", help="a shipped table of 64 experts")
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--threads", type=int, default=1)
    return parser


if __name__ == "__main__":
    sys.exit(main())
