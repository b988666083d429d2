"""Routers and batches made up so that experts are used as unevenly as in real models.

Without a model at hand a uniform router would be the worst case for every policy that shares
experts, and a single hot expert the best. What is made here lies between, by assumption:

- Popularity: expert of rank r has odds proportional to `r ** -skew`, ranks dealt at random. It
  enters through a direction all hidden states share, as the router itself is linear.
- Topics: tokens of one topic have `topic_share` of their variance in common, and so prefer
  similar experts.
- The logits of one token vary with standard deviation `spread` beyond popularity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from costprof.core.errors import InputError

_MOST = 100.0
"""Of skew and spread: logits stay finite in any type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """How uneven; see the module's docstring.

    Raises:
        InputError: a parameter outside its range.
    """

    skew: float = 0.5
    spread: float = 1.5
    topics: int = 4
    topic_share: float = 0.3

    def __post_init__(self) -> None:
        for name, good in (
            ("skew", 0 <= self.skew <= _MOST),
            ("spread", 0 <= self.spread <= _MOST),
            ("topics", self.topics >= 1),
            ("topic_share", 0 <= self.topic_share <= 1),
        ):
            if not good:
                raise InputError(
                    f"{name} is {getattr(self, name)}",
                    "no batch was made",
                    f"use skew and spread in 0 … {_MOST:g}, topics of at least 1, "
                    "topic_share in 0 … 1",
                )

    def router(self, n_experts: int, d_model: int, generator: torch.Generator) -> Tensor:
        """Return a router weight [E, d_model], float32."""
        rank = torch.randperm(n_experts, generator=generator) + 1
        popularity = -self.skew * rank.double().log()
        weight = torch.randn(n_experts, d_model, generator=generator) * self.spread
        weight[:, 0] = (popularity - popularity.mean()).float()
        return weight / math.sqrt(d_model)

    def batch(self, tokens: int, d_model: int, generator: torch.Generator) -> Tensor:
        """Return hidden states [tokens, d_model], float32, of variance about 1."""
        topics = torch.randn(self.topics, d_model, generator=generator)
        of_token = torch.randint(self.topics, (tokens,), generator=generator)
        own = torch.randn(tokens, d_model, generator=generator)
        share = self.topic_share
        hidden = math.sqrt(share) * topics[of_token] + math.sqrt(1 - share) * own
        hidden[:, 0] = math.sqrt(d_model)
        return hidden
