"""The policies that are compared, each in several settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from costprof.costmodel.table import CostTable
from costprof.routing import POLICIES, TopK, static_optimal
from costprof.routing.contract import Policy
from costprof.runtime.small_lm.model import SmallLM
from routing_steps.prefill import layer_logits

GRID: dict[str, list[dict[str, Any]]] = {
    "marginal": [
        {"q": q, "lam": lam}
        for q in (0.0, 0.3, 0.5, 0.6, 0.7, 0.8)
        for lam in (
            0.001,
            0.003,
            0.007,
            0.012,
            0.02,
            0.03,
            0.05,
            0.065,
            0.08,
            0.1,
            0.12,
            0.15,
            0.2,
            0.4,
            1.0,
        )
    ],
    "oea": [{"k0": k} for k in (1, 2, 3)],
    "budget": [{"experts": n} for n in (8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 56)],
    "lynx": [
        {"drop": drop, "affinity": affinity}
        for drop in (0.2, 0.4, 0.6, 1.0)
        for affinity in (0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.225, 0.25, 0.3)
    ],
    "cache_prior": [{"lam": lam} for lam in (0.025, 0.05, 0.1, 0.2, 0.4, 0.8)],
    "skip": [{"beta": beta} for beta in (0.05, 0.1, 0.2, 0.3, 0.5)],
    "statistical_balance": [{"rate": rate} for rate in (0.0003, 0.001, 0.003)],
    "prune": [{"share": share} for share in (0.1, 0.25, 0.5)],
    "tile_round": [{"block_m": m, "q": q} for m in (4, 16) for q in (0.6, 0.7, 0.8, 0.9, 0.95)],
}
FEWER = (1, 2, 3)
MASS_LOST = (0.01, 0.03, 0.1)


@dataclass(frozen=True)
class Entry:
    """A policy in one setting; `top_k` is for plain routing to fewer experts."""

    policy: str
    setting: str
    made: Policy
    top_k: int | None = None

    @property
    def name(self) -> str:
        """Policy and setting."""
        return f"{self.policy} {self.setting}".strip()


def entries(model: SmallLM, table: CostTable, text: torch.Tensor, batch: int) -> list[Entry]:
    """Return all settings that are tried; the fixed set is chosen for `text`'s own logits."""
    found = [Entry("topk", "", TopK())]
    found += [Entry("fewer", f"k={k}", TopK(), k) for k in FEWER]
    for name, settings in GRID.items():
        for each in settings:
            label = ",".join(f"{key}={value:g}" for key, value in each.items())
            found.append(Entry(name, label, POLICIES[name](**each)))
    logits = recorded_logits(model, text, batch)
    for mass_lost in MASS_LOST:
        fixed = static_optimal(logits, table=table, gate=model.config.gate, mass_lost=mass_lost)
        found.append(Entry("static_optimal", f"mass_lost={mass_lost:g}", fixed))
    return found


def recorded_logits(model: SmallLM, text: torch.Tensor, batch: int) -> list[torch.Tensor]:
    """Return router logits [B, E] of some decode batches of all layers."""
    return [
        each for layer in layer_logits(model, text[:batch]) for each in layer[:, ::16].unbind(1)
    ]
