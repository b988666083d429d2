"""How well the model predicts: bits per byte of stretches of text, by domain."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from costprof.runtime.small_lm.model import Router, SmallLM
from costprof.runtime.small_lm.text import DOMAINS, Corpus


def bits_of(logits: Tensor, text: Tensor) -> Tensor:
    """Bits [B, T] that each next byte of `text` [B, T + 1] took by `logits` [B, T, 256]."""
    nats = F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten(), reduction="none")
    return nats.view(logits.shape[:2]) / math.log(2)


@torch.inference_mode()
def bits_per_byte(
    model: SmallLM,
    corpus: Corpus,
    split: str,
    *,
    sequences: int,
    seed: int = 0,
    router: Router | None = None,
) -> dict[str, float]:
    """Return bits per byte of `sequences` stretches of each domain of `split`, at full context.

    Raises:
        InputError: the split has fewer stretches.
    """
    found = {}
    for domain in DOMAINS:
        windows = corpus.windows(split, domain, sequences, model.config.context + 1, seed=seed)
        bits = [
            bits_of(model(text[:, :-1], router), text).sum().item()
            for text in torch.split(torch.from_numpy(windows).long(), 16)
        ]
        found[domain] = sum(bits) / (sequences * model.config.context)
    return found
