"""Why a row of a batch went where it went, and what that saved."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from costprof.core.errors import InputError
from costprof.costmodel.table import CostTable, LayerCost
from costprof.routing.contract import Gate, Policy, Rows, Selection, SystemState
from costprof.routing.gate import select
from costprof.routing.marginal_reasons import MarginalReasons
from costprof.routing.policies.marginal import Marginal
from costprof.routing.policies.scheduled import Scheduled
from costprof.routing.router import route

Fate = Literal["kept", "dropped", "refilled", "passed over"]

_COOL = SystemState()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertNote:
    """One expert, seen from one row.

    Attributes:
        expert: Its number.
        rank: Place in the row's gate ranking, from 1.
        score: The gate's score.
        share: Of the gate mass of the row's top-k; None for experts outside it.
        fate: kept: chosen as by top-k; dropped: top-k's, not chosen; refilled: chosen, not
            top-k's; passed over: in neither choice, though it ranks before one that is chosen.
        weight_before, weight: Its weight in the row by top-k and by the policy.
        tokens_before, tokens: Assignments in the whole batch, likewise.
        saved_us, saved_mj: What the batch no longer pays for this expert; below 0 for more.
        why: Why it was kept or dropped, where the policy weighs experts (`Marginal`); else empty.
    """

    expert: int
    rank: int
    score: float
    share: float | None
    fate: Fate
    weight_before: float
    weight: float
    tokens_before: int
    tokens: int
    saved_us: float
    saved_mj: float
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What became of one row, and of its batch.

    Attributes:
        row: Number of the row.
        role: What it is: "padding", "prompt", "one of several of its sequence", "decode".
        experts: By rank: all of top-k, all chosen, and what was passed over between.
        gate_mass_lost: Share of the row's own top-k gate mass.
        active_before, active: Experts awake in the batch.
        latency_us_before, latency_us, energy_mj_before, energy_mj: Predicted, of the layer.
        criterion: What the policy decides by, in a sentence.
        reasons: Why, in sentences.
    """

    row: int
    role: str
    experts: tuple[ExpertNote, ...]
    gate_mass_lost: float
    active_before: int
    active: int
    latency_us_before: float
    latency_us: float
    energy_mj_before: float
    energy_mj: float
    criterion: str
    reasons: tuple[str, ...]


def explain(
    logits: Tensor,
    row: int,
    *,
    table: CostTable,
    gate: Gate,
    policy: Policy,
    rows: Rows | None = None,
    state: SystemState = _COOL,
    history: Any = None,
) -> Explanation:
    """Route the batch `logits` [T, E] plainly and by `policy`, and compare what `row` got.

    Prices are the table's for the whole batch, as no row pays for an expert alone.

    Raises:
        InputError: there is no such row, or as `route` says.
        TableError: as `route` says.
    """
    if not 0 <= row < logits.shape[0]:
        raise InputError(
            f"row {row} of {logits.shape[0]}",
            "nothing was explained",
            f"use 0 … {logits.shape[0] - 1}",
        )
    known = Rows.decode(logits.shape[0], device=logits.device) if rows is None else rows
    plain = route(logits, table=table, gate=gate, rows=known)
    got = route(
        logits, table=table, gate=gate, policy=policy, rows=known, state=state, history=history
    )
    role = _role(known, row)
    before = _weights(plain.indices[row], plain.weights[row], plain.used[row])
    after = _weights(got.indices[row], got.weights[row], got.used[row])
    saved = _saved(table.expert_costs(plain.counts), table.expert_costs(got.counts))
    selection = select(logits, gate)
    scores = selection.scores[row].tolist()
    mass = sum(scores[e] for e in before)
    order = _order(selection.ranking[row], selection.indices[row])
    decided = policy.policy_for(state) if isinstance(policy, Scheduled) else policy
    why = _whys(decided, selection, row, before, after, role, rows=known, table=table)
    last = max((order.index(e) for e in {*before, *after}), default=-1)
    notes = [
        ExpertNote(
            expert=e,
            rank=rank,
            score=scores[e],
            share=scores[e] / mass if e in before and mass > 0 else None,
            fate=_fate(e in before, e in after),
            weight_before=before.get(e, 0.0),
            weight=after.get(e, 0.0),
            tokens_before=int(plain.counts[e]),
            tokens=int(got.counts[e]),
            saved_us=saved[0][e],
            saved_mj=saved[1][e],
            why=why.get(e, ""),
        )
        for rank, e in enumerate(order[: last + 1], start=1)
    ]
    return Explanation(
        row=row,
        role=role,
        experts=tuple(notes),
        gate_mass_lost=float(got.gate_mass_lost[row]),
        active_before=int(plain.counts.count_nonzero()),
        active=int(got.counts.count_nonzero()),
        latency_us_before=float(plain.predicted.latency_us),
        latency_us=float(got.predicted.latency_us),
        energy_mj_before=float(plain.predicted.energy_mj),
        energy_mj=float(got.predicted.energy_mj),
        criterion=_criterion(decided),
        reasons=tuple(_reasons(notes, role, decided)),
    )


def _criterion(policy: Policy) -> str:
    """The policy's name, and what its docstring begins with."""
    says = (inspect.getdoc(policy) or "").partition("\n")[0]
    return f"{type(policy).__name__}: {says}"


def _whys(
    policy: Policy,
    plain: Selection,
    row: int,
    before: Collection[int],
    after: Collection[int],
    role: str,
    *,
    rows: Rows,
    table: CostTable,
) -> dict[int, str]:
    """Why each expert that the row had before was kept or dropped, where the policy weighs them."""
    if not isinstance(policy, Marginal) or policy.neutral:
        return {}
    if role != "decode" and not policy.prefill:
        return {}
    reasons = MarginalReasons(policy, plain, rows=rows, table=table)
    return {e: reasons.why(row, e, kept=e in after) for e in before}


def _role(rows: Rows, row: int) -> str:
    if not rows.real[row]:
        return "padding"
    if rows.is_prefill[row]:
        return "prompt"
    return "decode" if rows.lone_decode()[row] else "one of several of its sequence"


def _weights(indices: Tensor, weights: Tensor, used: Tensor) -> dict[int, float]:
    """Weight of each expert of one row."""
    slots = zip(indices.tolist(), weights.tolist(), used.tolist(), strict=True)
    return {e: weight for e, weight, in_use in slots if in_use}


def _order(ranking: Tensor, first: Tensor) -> list[int]:
    """Experts by rank; what top-k chose comes first, in its order (it decides ties)."""
    own = first.tolist()
    by_rank = ranking.argsort(descending=True, stable=True).tolist()
    return own + [e for e in by_rank if e not in own]


def _saved(before: LayerCost, after: LayerCost) -> tuple[list[float], list[float]]:
    latency = before.latency_us - after.latency_us
    energy = before.energy_mj - after.energy_mj
    return latency.tolist(), energy.tolist()


def _fate(before: bool, after: bool) -> Fate:
    if before:
        return "kept" if after else "dropped"
    return "refilled" if after else "passed over"


def _reasons(notes: list[ExpertNote], role: str, policy: Policy) -> list[str]:
    name = type(policy).__name__
    if role == "padding":
        return ["The row is padding: it uses no expert and influences nobody."]
    moved = [note for note in notes if note.fate in ("dropped", "refilled")]
    kept = [
        f"Expert {note.expert} (rank {note.rank}) was kept: {note.why}."
        for note in notes
        if note.fate == "kept" and note.why
    ]
    if not moved:
        found = [f"{name} left the row its own top-k."]
        if role != "decode":
            what = "belongs to a prompt" if role == "prompt" else f"is {role}"
            found.append(
                f"The row {what}: what else is in the batch may not decide for it, as that could "
                "be a later token of its own sequence."
            )
        return found + kept
    return [
        *(_dropped(note) if note.fate == "dropped" else _refilled(note) for note in moved),
        *kept,
    ]


def _dropped(note: ExpertNote) -> str:
    end = "so it sleeps" if note.tokens == 0 else "so it stays awake for others"
    return (
        f"Expert {note.expert} (rank {note.rank}, {note.share or 0.0:.1%} of the row's gate mass) "
        f"was dropped; {_loads(note)}, {end}: {note.saved_us:.2f} µs and {note.saved_mj:.3f} mJ "
        f"less{f' ({note.why})' if note.why else ''}."
    )


def _refilled(note: ExpertNote) -> str:
    start = "awake anyway" if note.tokens_before else "asleep before"
    return (
        f"Expert {note.expert} (rank {note.rank}) was taken instead, {start}; {_loads(note)}: "
        f"{-note.saved_us:.2f} µs and {-note.saved_mj:.3f} mJ more."
    )


def _loads(note: ExpertNote) -> str:
    return f"the batch's assignments to it went from {note.tokens_before} to {note.tokens}"
