"""What the rows of a batch are, from the arguments a transformers model is called with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from costprof.routing import Rows


class Batch:
    """A forward call of B sequences with Q tokens each, its B·Q rows sequence by sequence.

    Attributes:
        is_prefill: Whether a sequence has more than one token here, or none before it; a bool []
            where only the device knows.
    """

    def __init__(self, inputs: Tensor, mask: Tensor | None, past: int | Tensor) -> None:
        """Describe `inputs` [B, Q, …] after `past` tokens.

        `mask` [B, any] is 0 at padding; its column `past` is that of the first token here, and
        tokens beyond its end count as real. Or it is [B or 1, heads, Q, keys], True or 0 where a
        token attends to a key: padding attends to none. A `past` on a device is [] int64.
        """
        self._sequences, self._tokens = inputs.shape[:2]
        self._device = inputs.device
        self._mask = mask
        self._past = past
        self._rows: Rows | None = None
        self.is_prefill: bool | Tensor = True if self._tokens > 1 else past == 0

    def __len__(self) -> int:
        return self._sequences * self._tokens

    @property
    def rows(self) -> Rows:
        """The rows; made when first asked for, as only policies read them."""
        if self._rows is None:
            self._rows = self._make_rows()
        return self._rows

    def _make_rows(self) -> Rows:
        sequences, tokens, device = self._sequences, self._tokens, self._device
        past = self._past.to(device) if isinstance(self._past, Tensor) else self._past
        column = torch.arange(tokens, device=device) + past
        if self._mask is None:
            real = torch.ones(sequences, tokens, dtype=torch.bool, device=device)
            position = column.expand(sequences, tokens)
        elif self._mask.dim() == 4:
            mask = self._mask[:, 0].to(device)
            seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min
            real = seen.any(dim=-1).expand(sequences, tokens)
            position = column.expand(sequences, tokens)
        else:
            mask = self._mask.to(device) != 0
            inside = column.clamp_max(mask.shape[1] - 1)
            beyond = column - inside
            real = mask[:, inside] | (beyond > 0)
            position = (mask.cumsum(dim=-1)[:, inside] - 1).clamp_min(0) + beyond
        return Rows(
            real=real.reshape(-1),
            sequence=torch.arange(sequences, device=device).repeat_interleave(tokens),
            position=position.reshape(-1),
            is_prefill=self._is_prefill_of_rows(),
            distinct=tokens == 1,
        )

    def _is_prefill_of_rows(self) -> Tensor:
        if isinstance(self.is_prefill, Tensor):
            return self.is_prefill.to(self._device).expand(len(self))
        return torch.full((len(self),), self.is_prefill, device=self._device)


@dataclass(frozen=True, slots=True, eq=False)
class KnownRows:
    """A forward call whose rows are at hand; attributes as of `Batch`."""

    rows: Rows
    is_prefill: bool | Tensor

    def __len__(self) -> int:
        return self.rows.real.shape[0]


def packed(starts: Tensor, position: Tensor) -> KnownRows:
    """Describe rows at `position` [T] in sequences that begin at rows `starts` [S + 1].

    Rows behind the last sequence are padding.
    """
    row = torch.arange(position.shape[0], device=position.device)
    starts = starts.to(position.device, torch.int64)
    sequence = torch.searchsorted(starts[1:].contiguous(), row, right=True)
    real = row < starts[-1]
    tokens = (starts[1:] - starts[:-1])[sequence.clamp_max(starts.shape[0] - 2)]
    is_prefill = (tokens > 1) | (position == 0)
    rows = Rows(
        real=real, sequence=sequence, position=position.to(torch.int64), is_prefill=is_prefill
    )
    return KnownRows(rows, (is_prefill & real).any())


def describe(arguments: Mapping[str, Any]) -> Batch | KnownRows | None:
    """Return what `arguments`, by name, of a model's forward call say; None if they do not tell.

    Padding is what a two-dimensional `attention_mask` masks, and what attends to nothing under one
    of four dimensions (or a dict of such, by kinds of layers); under any other mask every row
    counts as real. How many tokens came before is what the cache says, and without one, how much
    wider the mask is than the tokens given: a mask for a static cache may be as wide as the cache.
    A sequence with several tokens is a prompt (or a part of one, or speculated tokens): no row of
    it may be routed by what else is in the batch. `cu_seq_lens_q` says where the sequences of a
    packed batch begin.
    """
    inputs = arguments.get("input_ids")
    if not isinstance(inputs, Tensor):
        inputs = arguments.get("inputs_embeds")
    if not isinstance(inputs, Tensor) or inputs.dim() < 2:
        return None
    starts, position = arguments.get("cu_seq_lens_q"), arguments.get("position_ids")
    if isinstance(starts, Tensor) and isinstance(position, Tensor):
        if position.shape != inputs.shape[:2] or inputs.shape[0] != 1 or starts.shape[0] < 2:
            return None
        return packed(starts, position[0])
    past = _past_tokens(arguments)
    mask = _mask_of(arguments, *inputs.shape[:2])
    if past is None:
        wider = 0 if mask is None or mask.dim() == 4 else mask.shape[1] - inputs.shape[1]
        past = max(wider, 0)
    return Batch(inputs, mask, past)


def _mask_of(arguments: Mapping[str, Any], sequences: int, tokens: int) -> Tensor | None:
    """Return a mask that `Batch` can read, if there is one."""
    given = arguments.get("attention_mask")
    masks = list(given.values()) if isinstance(given, Mapping) else [given]
    for mask in masks:
        if not isinstance(mask, Tensor):
            continue
        if mask.dim() == 2 and mask.shape[0] == sequences:
            return mask
        is_read = mask.is_floating_point() or mask.dtype == torch.bool
        if mask.dim() == 4 and is_read and mask.shape[0] in (1, sequences):
            return mask if mask.shape[2] == tokens else None
    return None


def _past_tokens(arguments: Mapping[str, Any]) -> int | Tensor | None:
    """Return how many tokens the cache holds now, before the model adds to it; None without one.

    A static cache counts them in a tensor, which is copied as it is: reading it would wait for its
    device.
    """
    for name in ("cache", "past_key_values"):  # the new name and the old one
        length = getattr(arguments.get(name), "get_seq_length", None)
        if length is not None:
            tokens = length()
            return tokens.clone() if isinstance(tokens, Tensor) else int(tokens)
    return None
