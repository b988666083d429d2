"""What rounding the token counts of prompts to tiles is predicted to save."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from costprof.costmodel.table import CostTable
from costprof.routing import POLICIES, Rows, TopK, route
from costprof.routing.gate import select
from costprof.runtime.small_lm.evaluate import judged_text
from costprof.runtime.small_lm.model import Routed, SmallLM
from costprof.runtime.small_lm.text import Corpus


@torch.inference_mode()
def layer_logits(model: SmallLM, text: torch.Tensor) -> list[torch.Tensor]:
    """Return the router logits [B, T, E] of each layer under plain routing."""
    found: list[torch.Tensor] = []
    gate = model.config.gate

    def keep(layer: int, logits: torch.Tensor) -> Any:
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


def prefill(
    model: SmallLM, corpus: Corpus, table: CostTable, draws: int = 4, length: int = 256
) -> None:
    """Print it, by prompts at once."""
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
