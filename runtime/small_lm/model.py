"""A small byte-level language model, every feed-forward of which is a mixture of experts.

Decoder-only: RMSNorm before each block, rotary positions (arXiv 2104.09864), causal attention,
SwiGLU experts chosen by a softmax gate whose k weights are renormalised. Small enough for a CPU,
large enough that which experts a batch wakes changes what it predicts.

B is sequences, T positions, E experts, k the gate's top_k.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from costprof.core.errors import InputError
from costprof.routing import Gate
from costprof.routing.gate import select
from costprof.runtime.permutation import permutation
from costprof.runtime.small_lm.grouped import grouped_product

N_BYTES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallLMConfig:
    """Sizes. `context` is the longest sequence the model was trained on, in bytes.

    Raises:
        InputError: a size below one, heads of odd width, or more experts chosen than there are.
    """

    d_model: int = 128
    n_heads: int = 4
    n_layers: int = 4
    n_experts: int = 64
    top_k: int = 4
    d_ff: int = 64
    context: int = 256

    def __post_init__(self) -> None:
        sizes = [getattr(self, name) for name in self.__slots__]
        if not all(type(size) is int and 1 <= size <= 2**14 for size in sizes):
            bad = f"sizes are {sizes}"
        elif self.d_model % (2 * self.n_heads):
            bad = f"d_model {self.d_model} with {self.n_heads} heads"
        elif self.top_k > self.n_experts:
            bad = f"top_k is {self.top_k} of {self.n_experts} experts"
        else:
            return
        raise InputError(
            bad,
            "there is no such model",
            "use sizes of 1 … 16384, heads of even width, top_k at most n_experts",
        )

    @property
    def gate(self) -> Gate:
        """The gate of every layer."""
        return Gate(top_k=self.top_k)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Routed:
    """Which experts compute which token: all [B, T, k]; `used` None where every slot is."""

    indices: Tensor
    weights: Tensor
    used: Tensor | None = None


Router = Callable[[int, Tensor], Routed]
"""Called once a layer with its number and the router's logits [B, T, E]."""


@dataclass(slots=True, eq=False)
class KeyValueCache:
    """Keys and values of the positions so far, one pair a layer, [B, heads, T, width]."""

    pairs: list[tuple[Tensor, Tensor]]

    @property
    def length(self) -> int:
        """Positions held."""
        return self.pairs[0][0].shape[2] if self.pairs else 0


class SmallLM(nn.Module):
    """The model; `forward` gives the logits of the next byte at every position.

    Attributes:
        config: Its sizes.
    """

    def __init__(self, config: SmallLMConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(N_BYTES, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.RMSNorm(config.d_model, eps=1e-6)
        self.head = nn.Linear(config.d_model, N_BYTES, bias=False)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw all weights anew; outputs of blocks start small, as there are 2 · n_layers."""
        residual = 1.0 / math.sqrt(2 * self.config.n_layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                continue  # the gains of norms stay 1
            fan_in = parameter.shape[1]
            scale = 1.0 if name == "embedding.weight" else 1.0 / math.sqrt(fan_in)
            if name.endswith(("attention.out.weight", "experts_out")):
                scale *= residual
            elif name == "head.weight":
                scale *= 0.5
            with torch.no_grad():
                parameter.normal_(0.0, scale, generator=generator)

    def forward(
        self, tokens: Tensor, router: Router | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Return logits [B, T, 256] in float32 for `tokens` [B, T], int64 in 0 … 255.

        Args:
            router: Chooses the experts; None: plain top-k.
            cache: Holds the positions before these, and afterwards these too.

        Raises:
            InputError: `tokens` are no such matrix.
        """
        if tokens.dim() != 2 or tokens.dtype != torch.int64:
            raise InputError(
                f"tokens are {tokens.dtype} {list(tokens.shape)}",
                "the model cannot run",
                "give int64 [sequences, positions]",
            )
        choose = router or self.plain
        begin = cache.length if cache is not None else 0
        turn = rotation(
            begin, begin + tokens.shape[1], self.config.d_model // self.config.n_heads, self.head
        )
        hidden = self.embedding(tokens)
        for layer, block in enumerate(self.blocks):
            hidden = block(hidden, layer, turn, choose, cache)
        return self.head(self.norm(hidden)).float()  # type: ignore[no-any-return]

    def plain(self, layer: int, logits: Tensor) -> Routed:
        """Plain top-k of the gate, as a `Router`."""
        chosen = select(logits.flatten(0, 1), self.config.gate)
        shape = (*logits.shape[:2], -1)
        return Routed(indices=chosen.indices.view(shape), weights=chosen.weights.view(shape))


class Block(nn.Module):
    """Attention, then a mixture of experts, each behind a norm and beside a residual."""

    def __init__(self, config: SmallLMConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.d_model, eps=1e-6)
        self.attention = Attention(config)
        self.moe_norm = nn.RMSNorm(config.d_model, eps=1e-6)
        self.moe = Experts(config)

    def forward(
        self,
        hidden: Tensor,
        layer: int,
        turn: tuple[Tensor, Tensor],
        router: Router,
        cache: KeyValueCache | None,
    ) -> Tensor:
        """Return hidden states [B, T, d_model]."""
        hidden = hidden + self.attention(self.attention_norm(hidden), layer, turn, cache)
        x = self.moe_norm(hidden)
        routed = router(layer, F.linear(x, self.moe.gate.weight))
        return hidden + self.moe(x, routed)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Causal attention of `n_heads` heads with rotary positions."""

    def __init__(self, config: SmallLMConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model, bias=False)
        self.out = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(
        self, x: Tensor, layer: int, turn: tuple[Tensor, Tensor], cache: KeyValueCache | None
    ) -> Tensor:
        """Return [B, T, d_model]; `cache` is extended by these positions."""
        batch, length, width = x.shape
        heads = self.qkv(x).view(batch, length, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = rotate(heads[0], turn), rotate(heads[1], turn), heads[2]
        if cache is not None:
            if layer < len(cache.pairs):
                old_key, old_value = cache.pairs[layer]
                key, value = torch.cat([old_key, key], 2), torch.cat([old_value, value], 2)
                cache.pairs[layer] = (key, value)
            else:
                cache.pairs.append((key, value))
        past = key.shape[2] - length
        if past == 0:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            seen = torch.ones(length, key.shape[2], dtype=torch.bool, device=x.device).tril(past)
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))  # type: ignore[no-any-return]


class Experts(nn.Module):
    """E SwiGLU experts and the router's weight.

    `experts_in` is [E, d_model, 2 · d_ff], gate half first; `experts_out` [E, d_ff, d_model].
    """

    def __init__(self, config: SmallLMConfig) -> None:
        super().__init__()
        n, d, f = config.n_experts, config.d_model, config.d_ff
        self.gate = nn.Linear(d, n, bias=False)
        self.experts_in = nn.Parameter(torch.empty(n, d, 2 * f))
        self.experts_out = nn.Parameter(torch.empty(n, f, d))

    def forward(self, x: Tensor, routed: Routed) -> Tensor:
        """Return [B, T, d_model]: the weighted sum of each token's experts."""
        n_experts, k = self.experts_in.shape[0], routed.indices.shape[-1]
        indices = routed.indices.reshape(-1, k)
        used = torch.ones_like(indices, dtype=torch.bool)
        if routed.used is not None:
            used = routed.used.reshape(-1, k)
        of_expert = torch.bincount(indices[used], minlength=n_experts)
        slots, back = permutation(indices, used, of_expert)
        counts = of_expert.tolist()
        rows = x.reshape(-1, x.shape[-1])[slots // k]
        gate, up = grouped_product(rows, self.experts_in, counts).chunk(2, dim=-1)
        out = grouped_product(F.silu(gate) * up, self.experts_out, counts)
        of_slot = out[back].view(*routed.indices.shape, -1)
        return (of_slot * routed.weights.unsqueeze(-1).to(of_slot.dtype)).sum(dim=-2)


def rotation(begin: int, end: int, width: int, like: nn.Linear) -> tuple[Tensor, Tensor]:
    """Cosine and sine [T, width / 2] of positions `begin` … `end` - 1, base 10000."""
    weight = like.weight
    rate = 10000.0 ** (
        -torch.arange(0, width, 2, device=weight.device, dtype=torch.float64) / width
    )
    angle = torch.arange(begin, end, device=weight.device).unsqueeze(-1) * rate
    return angle.cos().to(weight.dtype), angle.sin().to(weight.dtype)


def rotate(heads: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the two halves of `heads` [B, heads, T, width] against each other by position."""
    first, second = heads.chunk(2, dim=-1)
    cos, sin = turn
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
