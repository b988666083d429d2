"""What a policy does to a real model: bits per byte, and what its decode batches cost.

Teacher-forced: B sequences stand side by side, and the rows at one position are the decode batch a
policy sees. Experts change a row's hidden state and, through attention, those of later positions of
its own sequence only; so all positions of a layer may be computed at once, after its router has
gone through them in order. That equals decoding step by step (up to the rounding of products of
another shape) at a fraction of the time.

S is sequences, B a batch of them, T positions, L layers, E experts, k slots a row.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from costprof.core.errors import InputError
from costprof.costmodel.table import CostTable
from costprof.routing import Gate, Rows, SystemState, TopK, route
from costprof.routing.contract import Policy
from costprof.routing.gate import select
from costprof.runtime.small_lm.model import Routed, SmallLM
from costprof.runtime.small_lm.quality import bits_of
from costprof.runtime.small_lm.text import DOMAINS, Corpus

BLOCK_M = 16
"""Rows a tile: an expert's rows are padded to a multiple of it."""

_TOPK = TopK()
_COOL = SystemState()
_WEIGHT_BYTES = 2  # bfloat16, as the checkpoint stores them


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """What one policy did. Float64; batches hold neighbouring sequences, in order.

    Bits are exact for this model; active experts, bytes and rows are exact counts. Latency and
    energy are the table's for the same counts: *predicted*, and for the layer the table is of.

    Attributes:
        bits_per_byte: [S], of each sequence; pairs with that of another policy on the same text.
        active_experts: [S / B], experts with at least one row, mean over layers and positions, as
            are all that follow.
        weight_bytes: [S / B], read for active experts, at bfloat16.
        rows: [S / B], slots used.
        padded_rows: [S / B], the same after padding each expert's to multiples of `BLOCK_M`.
        predicted_us: [S / B].
        predicted_mj: [S / B].
        gate_mass_lost: [S / B], mean share of a row's own top-k scores, with the model's own k,
            whose experts it was not given.
    """

    bits_per_byte: Tensor
    active_experts: Tensor
    weight_bytes: Tensor
    rows: Tensor
    padded_rows: Tensor
    predicted_us: Tensor
    predicted_mj: Tensor
    gate_mass_lost: Tensor


class DecodeRouter:
    """Routes each position's rows as one decode batch, and notes what was decided.

    One serves one batch of sequences from their first position on: a policy's history is kept by
    layer. It may be given all positions at once, or one after the other.

    Attributes:
        counts: By layer, one int64 [T, E] a call.
        lost: By layer, one float64 [B, T] a call: share of gate mass lost.
    """

    def __init__(
        self,
        model: SmallLM,
        *,
        table: CostTable,
        policy: Policy = _TOPK,
        top_k: int | None = None,
        state: SystemState = _COOL,
    ) -> None:
        """Route for `model`, with `top_k` experts a row (None: the model's own k).

        Raises:
            InputError: the table is of another number of experts.
        """
        if table.n_experts != model.config.n_experts:
            raise InputError(
                f"{model.config.n_experts} experts, {table.n_experts} in the table",
                "they cannot be priced",
                "use a table (or its moe=) of as many",
            )
        self.table, self.policy, self.state = table, policy, state
        self.own_gate = model.config.gate
        self.gate = self.own_gate if top_k is None else Gate(top_k=top_k)
        self.counts: list[list[Tensor]] = [[] for _ in range(model.config.n_layers)]
        self.lost: list[list[Tensor]] = [[] for _ in range(model.config.n_layers)]
        self._history: list[Any] = [None] * model.config.n_layers

    def __call__(self, layer: int, logits: Tensor) -> Routed:
        """Choose experts for `logits` [B, T, E]; see `model.Router`."""
        routed = self._neutral(logits) if self.policy.neutral else self._in_turn(layer, logits)
        self._note(layer, logits, routed)
        return routed

    def _neutral(self, logits: Tensor) -> Routed:
        """Plain top-k knows no companions: all positions at once."""
        chosen = select(logits.flatten(0, 1), self.gate)
        shape = (*logits.shape[:2], -1)
        return Routed(
            indices=chosen.indices.view(shape),
            weights=chosen.weights.view(shape),
            used=chosen.used.view(shape),
        )

    def _in_turn(self, layer: int, logits: Tensor) -> Routed:
        plain_rows = Rows.decode(logits.shape[0], device=logits.device)
        begin = sum(each.shape[0] for each in self.counts[layer])
        found = []
        for position, at_once in enumerate(logits.unbind(1), start=begin):
            rows = dataclasses.replace(
                plain_rows, position=torch.full_like(plain_rows.position, position)
            )
            assignment = route(
                at_once,
                table=self.table,
                gate=self.gate,
                policy=self.policy,
                rows=rows,
                state=self.state,
                history=self._history[layer],
            )
            self._history[layer] = assignment.history
            found.append(assignment)
        return Routed(
            indices=torch.stack([each.indices for each in found], dim=1),
            weights=torch.stack([each.weights for each in found], dim=1),
            used=torch.stack([each.used for each in found], dim=1),
        )

    def _note(self, layer: int, logits: Tensor, routed: Routed) -> None:
        used = torch.ones_like(routed.indices) if routed.used is None else routed.used.long()
        given = torch.zeros(logits.shape, dtype=torch.int64, device=logits.device)
        given.scatter_add_(-1, routed.indices, used)  # [B, T, E]
        self.counts[layer].append(given.sum(dim=0))
        own = select(logits.flatten(0, 1), self.own_gate)
        indices = own.indices.view(*logits.shape[:2], -1)
        scores = own.scores.view(logits.shape).gather(-1, indices).double()
        kept = (scores * (given.gather(-1, indices) > 0)).sum(-1)
        self.lost[layer].append(1.0 - kept / scores.sum(-1))


@torch.inference_mode()
def evaluate(
    model: SmallLM,
    text: Tensor,
    *,
    batch: int,
    table: CostTable,
    policy: Policy = _TOPK,
    top_k: int | None = None,
    state: SystemState = _COOL,
) -> Evaluation:
    """Let `model` predict `text` in decode batches of `batch` sequences routed by `policy`.

    Args:
        text: int64 [S, T + 1], bytes.
        table: Prices of as many experts as the model has. Of another model than this they say
            what the same token counts would cost there.
        top_k: Experts a row is given; None: the model's own k.

    Raises:
        InputError: S is not a multiple of `batch`, or the table is of another number of experts.
        TableError: the policy needs a price the table lacks.
    """
    if batch < 1 or text.shape[0] == 0 or text.shape[0] % batch:
        raise InputError(
            f"{text.shape[0]} sequences in batches of {batch}",
            "the last batch would be smaller",
            "give a multiple",
        )
    expert_bytes = 3 * model.config.d_model * model.config.d_ff * _WEIGHT_BYTES
    found: dict[str, list[Tensor]] = {field.name: [] for field in dataclasses.fields(Evaluation)}
    for part in torch.split(text, batch):
        router = DecodeRouter(model, table=table, policy=policy, top_k=top_k, state=state)
        bits = bits_of(model(part[:, :-1], router), part)
        counts = torch.stack([torch.cat(each) for each in router.counts])  # [L, T, E]
        active = (counts > 0).sum(-1).double().mean()
        price = table.layer_cost(counts)
        found["bits_per_byte"].append(bits.double().mean(dim=1))
        found["active_experts"].append(active)
        found["weight_bytes"].append(active * expert_bytes)
        found["rows"].append(counts.sum(-1).double().mean())
        padded = (counts + BLOCK_M - 1) // BLOCK_M * BLOCK_M
        found["padded_rows"].append(padded.sum(-1).double().mean())
        found["predicted_us"].append(price.latency_us.mean())
        found["predicted_mj"].append(price.energy_mj.mean())
        lost = torch.stack([torch.cat(each, dim=1) for each in router.lost])
        found["gate_mass_lost"].append(lost.mean())
    bits_of_sequences = torch.cat(found.pop("bits_per_byte"))
    return Evaluation(
        bits_per_byte=bits_of_sequences,
        **{name: torch.stack(values) for name, values in found.items()},
    )


def judged_text(
    corpus: Corpus, split: str, sequences: int, *, length: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return text to judge policies on: stretches of all domains in turn, in a seeded order.

    Returns:
        int64 [sequences, length + 1] bytes, and [sequences] the place of each one's domain in
        `DOMAINS`. Neighbours are of different domains, as in a server that serves all.

    Raises:
        InputError: the split has fewer stretches.
    """
    each = -(-sequences // len(DOMAINS))
    parts = [
        torch.from_numpy(corpus.windows(split, domain, each, length + 1, seed=seed)).long()
        for domain in DOMAINS
    ]
    text = torch.stack(parts, dim=1).flatten(0, 1)[:sequences]
    domains = torch.arange(len(DOMAINS)).repeat(each)[:sequences]
    return text, domains
