"""What an attached model's layers were predicted to cost, batch by batch, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from costprof.costmodel.table import CostTable

_PENDING = 512
"""Calls held as counts before they are priced together; one price costs about as much as 512."""
_NOTHING = torch.zeros((), dtype=torch.float64)


class RouterBypassedWarning(UserWarning):
    """A model ran without calling its routers, so that nothing could be recorded or changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRecord:
    """One layer in one batch. Prices are the table's predictions.

    Attributes:
        batch: Number of the model's forward call, from 0.
        layer: Name of the router's module.
        is_prefill: False where every sequence had one token to decode.
        tokens: Rows the experts computed, padding included.
        active_experts: Experts that were given a row.
        latency_us, energy_mj: Price of the counts the experts were given.
        plain_active_experts, plain_latency_us, plain_energy_mj: The same of the model's own
            choice; equal where no policy changed it.
        gate_mass_lost: Mean over real rows, see `costprof.routing.Assignment`.
    """

    batch: int
    layer: str
    is_prefill: bool
    tokens: int
    active_experts: int
    latency_us: float
    energy_mj: float
    plain_active_experts: int
    plain_latency_us: float
    plain_energy_mj: float
    gate_mass_lost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Sums over all calls of a kind, also of those no longer in `records`.

    Attributes:
        calls: Layer calls; a model of L layers makes L per batch.
        active_experts, plain_active_experts: Mean per call.
        latency_us, energy_mj, plain_latency_us, plain_energy_mj: Predicted, summed.
        gate_mass_lost: Mean over calls.
    """

    calls: int = 0
    active_experts: float = 0.0
    latency_us: float = 0.0
    energy_mj: float = 0.0
    plain_active_experts: float = 0.0
    plain_latency_us: float = 0.0
    plain_energy_mj: float = 0.0
    gate_mass_lost: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    batch: int
    layer: str
    is_prefill: bool | Tensor  # [] bool
    tokens: int
    counts: Tensor  # [E] int64, as given to the experts
    plain_counts: Tensor  # [E] int64, as the model chose
    gate_mass_lost: Tensor | None  # [] float64


class Recorder:
    """Keeps counts as they come and prices many calls at once, so that a call costs little.

    Nothing is read back from a GPU until 512 calls are pending or somebody asks.
    """

    def __init__(self, tables: Mapping[str, CostTable], *, keep: int) -> None:
        """Price the layers by `tables`; keep the last `keep` records."""
        self._tables = tables
        self._records: deque[LayerRecord] = deque(maxlen=keep)
        self._pending: list[_Call] = []
        self._sums = {False: [0.0] * 8, True: [0.0] * 8}

    def add(
        self,
        layer: str,
        *,
        batch: int,
        is_prefill: bool | Tensor,
        given: Tensor,
        chosen: Tensor,
        gate_mass_lost: Tensor | None,
    ) -> None:
        """Note that `layer` computes the experts `given` [T, k] where its model chose `chosen`."""
        n_experts = self._tables[layer].n_experts
        plain = _counts(chosen, n_experts)
        call = _Call(
            batch,
            layer,
            is_prefill,
            given.shape[0],
            plain if given is chosen else _counts(given, n_experts),
            plain,
            None if gate_mass_lost is None else gate_mass_lost.detach(),
        )
        self._pending.append(call)
        if len(self._pending) >= _PENDING:
            self._price()

    def records(self) -> list[LayerRecord]:
        """Return the last records, oldest first."""
        self._price()
        return list(self._records)

    def summary(self, *, is_prefill: bool | None = None) -> Summary:
        """Return sums over prefill calls, decode calls, or (None) both."""
        self._price()
        kinds = [True, False] if is_prefill is None else [is_prefill]
        calls, active, us, mj, plain_active, plain_us, plain_mj, lost = (
            sum(each) for each in zip(*(self._sums[kind] for kind in kinds), strict=True)
        )
        return Summary(
            calls=int(calls),
            active_experts=active / max(calls, 1),
            latency_us=us,
            energy_mj=mj,
            plain_active_experts=plain_active / max(calls, 1),
            plain_latency_us=plain_us,
            plain_energy_mj=plain_mj,
            gate_mass_lost=lost / max(calls, 1),
        )

    def _price(self) -> None:
        pending, self._pending = self._pending, []
        priced: list[tuple[float, ...]] = [()] * len(pending)
        for layer in {call.layer for call in pending}:
            places = [i for i, call in enumerate(pending) if call.layer == layer]
            calls = [pending[i] for i in places]
            counts = torch.stack(  # [N, 2, E]
                [
                    _on_cpu([call.counts for call in calls]),
                    _on_cpu([call.plain_counts for call in calls]),
                ],
                dim=1,
            )
            cost = self._tables[layer].layer_cost(counts)
            lost = _on_cpu(
                [_NOTHING if c.gate_mass_lost is None else c.gate_mass_lost for c in calls]
            )
            values = torch.cat(
                [
                    (counts > 0).sum(-1).double(),
                    cost.latency_us,
                    cost.energy_mj,
                    lost.unsqueeze(-1),
                ],
                dim=-1,
            )
            for i, row in zip(places, values.tolist(), strict=True):
                priced[i] = tuple(row)
        for call, is_prefill, row in zip(pending, _kinds(pending), priced, strict=True):
            self._keep(call, is_prefill, row)

    def _keep(self, call: _Call, is_prefill: bool, row: tuple[float, ...]) -> None:
        active, plain_active, us, plain_us, mj, plain_mj, lost = row
        self._records.append(
            LayerRecord(
                batch=call.batch,
                layer=call.layer,
                is_prefill=is_prefill,
                tokens=call.tokens,
                active_experts=int(active),
                latency_us=us,
                energy_mj=mj,
                plain_active_experts=int(plain_active),
                plain_latency_us=plain_us,
                plain_energy_mj=plain_mj,
                gate_mass_lost=lost,
            )
        )
        sums = self._sums[is_prefill]
        for i, value in enumerate((1.0, active, us, mj, plain_active, plain_us, plain_mj, lost)):
            sums[i] += value


def _counts(indices: Tensor, n_experts: int) -> Tensor:
    """Slots per expert [E] of `indices` [T, k]; without waiting for a GPU, as bincount would."""
    flat = indices.detach().flatten().to(torch.int64)
    counts = torch.zeros(n_experts, dtype=torch.int64, device=flat.device)
    return counts.scatter_add_(0, flat, torch.ones_like(flat))


def _kinds(calls: list[_Call]) -> list[bool]:
    """Return whether each of `calls` was prefill, with one copy for all that a device knows of."""
    asked = [call.is_prefill for call in calls if isinstance(call.is_prefill, Tensor)]
    answers = iter(_on_cpu(asked).tolist() if asked else [])
    return [
        next(answers) if isinstance(call.is_prefill, Tensor) else call.is_prefill for call in calls
    ]


def _on_cpu(values: list[Tensor]) -> Tensor:
    """Stack `values`, whose devices may differ where a model was moved, with one copy for each."""
    out = torch.empty(len(values), *values[0].shape, dtype=values[0].dtype)
    for device in {value.device for value in values}:
        places = [i for i, value in enumerate(values) if value.device == device]
        out[places] = torch.stack([values[i] for i in places]).cpu()
    return out
