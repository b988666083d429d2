"""What the rows of a batch are, from the arguments a transformers model is called with."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from costprof.routing import Rows


class Batch:
    """A forward call of B sequences with Q tokens each, its B·Q rows sequence by sequence.

    Attributes:
        is_prefill: Whether a sequence has more than one token here, or none before it.
    """

    def __init__(self, inputs: Tensor, mask: Tensor | None, past: int) -> None:
        """Describe `inputs` [B, Q, …] after `past` tokens; `mask` [B, past + Q] is 0 at padding."""
        self._sequences, self._tokens = inputs.shape[:2]
        self._device = inputs.device
        self._mask = mask
        self._past = past
        self.is_prefill = self._tokens > 1 or past == 0

    def __len__(self) -> int:
        return self._sequences * self._tokens

    @cached_property
    def rows(self) -> Rows:
        """The rows; made when asked for, as only policies read them."""
        sequences, tokens, device = self._sequences, self._tokens, self._device
        if self._mask is None:
            real = torch.ones(sequences, tokens, dtype=torch.bool, device=device)
            position = torch.arange(self._past, self._past + tokens, device=device)
            position = position.expand(sequences, tokens)
        else:
            mask = self._mask.to(device) != 0
            real = mask[:, -tokens:]
            position = (mask.cumsum(dim=-1) - 1).clamp_min(0)[:, -tokens:]
        return Rows(
            real=real.reshape(-1),
            sequence=torch.arange(sequences, device=device).repeat_interleave(tokens),
            position=position.reshape(-1),
            is_prefill=torch.full((len(self),), self.is_prefill, device=device),
            distinct=tokens == 1,
        )


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
    mask = arguments.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] >= inputs.shape[1]:
        return Batch(inputs, mask, mask.shape[1] - inputs.shape[1])
    return Batch(inputs, None, _past_tokens(arguments))


def unknown(rows: Tensor) -> Batch:
    """Describe `rows` [T, …] of which nothing is known: as of one prompt, so none is changed."""
    return Batch(rows.unsqueeze(0), None, 0)


def _past_tokens(arguments: Mapping[str, Any]) -> int:
    for name in ("cache", "past_key_values"):  # the new name and the old one
        length = getattr(arguments.get(name), "get_seq_length", None)
        if length is not None:
            return int(length())
    return 0
