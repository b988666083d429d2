"""What the rows of a batch are, from the arguments a transformers model is called with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from costprof.routing import Rows


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A forward call of B sequences with Q tokens each.

    Attributes:
        is_prefill: Whether a sequence has more than one token here, or none before it.
        rows: The B·Q rows, sequence by sequence.
    """

    is_prefill: bool
    rows: Rows


def describe(arguments: Mapping[str, Any]) -> Batch | None:
    """Return what `arguments`, by name, of a model's forward call say; None if they do not tell.

    Padding is what a two-dimensional `attention_mask` [B, past + Q] masks; under any other mask
    every row counts as real. A sequence with several tokens is a prompt (or a part of one, or
    speculated tokens): no row of it may be routed by what else is in the batch.
    """
    inputs = arguments.get("input_ids")
    if not isinstance(inputs, Tensor):
        inputs = arguments.get("inputs_embeds")
    if not isinstance(inputs, Tensor) or inputs.dim() < 2:
        return None
    sequences, tokens = inputs.shape[0], inputs.shape[1]
    device = inputs.device
    mask = arguments.get("attention_mask")
    if not (isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] >= tokens):
        mask = None
    past = mask.shape[1] - tokens if mask is not None else _past_tokens(arguments)
    is_prefill = tokens > 1 or past == 0
    if mask is None:
        real = torch.ones(sequences, tokens, dtype=torch.bool, device=device)
        position = torch.arange(past, past + tokens, device=device).expand(sequences, tokens)
    else:
        mask = mask.to(device) != 0
        real = mask[:, -tokens:]
        position = (mask.cumsum(dim=-1) - 1).clamp_min(0)[:, -tokens:]
    rows = Rows(
        real=real.reshape(-1),
        sequence=torch.arange(sequences, device=device).repeat_interleave(tokens),
        position=position.reshape(-1),
        is_prefill=torch.full((sequences * tokens,), is_prefill, device=device),
        distinct=tokens == 1,
    )
    return Batch(is_prefill, rows)


def unknown(rows: int, device: torch.device) -> Batch:
    """Return `rows` rows of which nothing is known: as if of one prompt, so none is changed."""
    zeros = torch.zeros(rows, dtype=torch.int64, device=device)
    real = torch.ones(rows, dtype=torch.bool, device=device)
    return Batch(True, Rows(real=real, sequence=zeros, position=zeros, is_prefill=real))


def _past_tokens(arguments: Mapping[str, Any]) -> int:
    for name in ("cache", "past_key_values"):  # the new name and the old one
        length = getattr(arguments.get(name), "get_seq_length", None)
        if length is not None:
            return int(length())
    return 0
