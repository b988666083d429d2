"""Policies by name and `--set name=value`, and recorded traces, as verbs take them."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from costprof.core.errors import InputError
from costprof.costmodel.table import CostTable
from costprof.routing import POLICIES, Gate, static_optimal
from costprof.routing.contract import Policy, Rows
from costprof.routing.gate import select
from costprof.routing.objective import Objective

DEFAULTS: dict[str, dict[str, Any]] = {
    "topk": {},
    "marginal": {"lam": 0.02},
    "fewer": {},
    "skip": {"beta": 0.3},
    "oea": {},
    "budget": {},
    "lynx": {"drop": 0.25},
    "cache_prior": {"lam": 0.2},
    "cost_bias": {"alpha": 0.5},
    "statistical_balance": {"rate": 0.001},
    "prune": {"share": 0.25},
    "tile_round": {"block_m": 16},
    "static_optimal": {"mass_lost": 0.05},
}
"""What is not neutral, where nothing is set. More follows from the layer, see `make_policy`."""


def read_settings(name: str, given: Sequence[str]) -> dict[str, Any]:
    """Return `given` "parameter=value" texts as parameters of the policy `name`.

    Raises:
        InputError: no such policy or parameter, or a value of another kind.
    """
    if name not in POLICIES:
        raise InputError(
            f"policy {name!r} is unknown", "nothing was routed", f"use {', '.join(POLICIES)}"
        )
    kinds = _kinds(name)
    found: dict[str, Any] = {}
    for text in given:
        parameter, equals, value = text.partition("=")
        goal, dot, weight = parameter.partition(".")
        if not equals or (kinds.get(goal) is not Objective if dot else parameter not in kinds):
            raise InputError(
                f"--set {text}: policy {name} has no such parameter",
                "nothing was routed",
                f"set one of {', '.join(kinds) or 'nothing'}, as name=value",
            )
        if dot:
            found.setdefault(goal, {})[weight] = _value(text, value, float)
        elif kinds[parameter] is Objective:
            found.setdefault(parameter, {})[value] = 1.0  # a term by its name
        else:
            found[parameter] = _value(text, value, kinds[parameter])
    return found


def make_policy(
    name: str,
    settings: dict[str, Any],
    *,
    table: CostTable,
    gate: Gate,
    batches: Sequence[Tensor],
    rows: Sequence[Rows] | None = None,
) -> Policy:
    """Return the policy `name`; what `settings` leave open gets a sensible value.

    `fewer` keeps three quarters of the gate's top_k, `oea` wakes half of it, `budget` has two
    thirds of the experts that real rows wake in the first batch that has some. `static_optimal`
    without `kept` is chosen for `batches` [T, E] themselves: what a fixed set could do if all were
    known before. `rows` says what theirs are; None: all real.

    Raises:
        InputError: a parameter outside its range.
        TableError: the table does not price the objective.
    """
    top_k = gate.top_k
    active = _active_experts(batches, rows, gate)
    by_layer = {
        "fewer": {"k": max(1, round(0.75 * top_k))},
        "oea": {"k0": max(1, top_k // 2)},
        "budget": {"experts": max(top_k, 2 * active // 3)},
    }
    defaults = {**DEFAULTS[name], **by_layer.get(name, {})}
    if name == "marginal" and "budget" in settings:
        del defaults["lam"]  # it would go on dropping where the budget is met
    if name == "static_optimal" and "kept" in settings:
        for beside in settings.keys() - {"kept"}:
            raise InputError(
                f"static_optimal has its experts named, and {beside} to choose them by",
                "nothing was routed",
                "set kept alone, or leave it out",
            )
    chosen = {**defaults, **settings}
    if "objective" in chosen and isinstance(chosen["objective"], dict):
        chosen["objective"] = Objective.of(chosen["objective"])
    if name == "static_optimal":
        mass_lost = chosen.pop("mass_lost")
        goal = chosen.pop("objective", None)
        if "kept" not in chosen:
            return static_optimal(
                batches, table=table, gate=gate, mass_lost=mass_lost, objective=goal, rows=rows
            )
    made: Policy = POLICIES[name](**chosen)
    return made


def parameters_of(policy: Any) -> dict[str, Any]:
    """Return the parameters of `policy` as plain JSON values."""
    return dataclasses.asdict(policy)


def _active_experts(batches: Sequence[Tensor], rows: Sequence[Rows] | None, gate: Gate) -> int:
    """Experts that top-k wakes in the first batch with a real row; 0 without any."""
    for number, logits in enumerate(batches):
        chosen = select(logits, gate).indices
        mine = chosen if rows is None else chosen[rows[number].real]
        if mine.numel():
            return int(mine.flatten().bincount().count_nonzero())
    return 0


def _kinds(name: str) -> dict[str, Any]:
    """Type of each parameter of the policy `name`."""
    hints = typing.get_type_hints(POLICIES[name])
    kinds = {each.name: hints[each.name] for each in dataclasses.fields(POLICIES[name])}
    if name == "static_optimal":
        kinds |= {"mass_lost": float, "objective": Objective}
    return kinds


def _value(text: str, value: str, kind: Any) -> Any:
    """Return `value` as the `kind` of a parameter."""
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    members = typing.get_args(kind) if union else (kind,)
    origins = {typing.get_origin(each) or each for each in members}
    try:
        if bool in origins:
            return {"true": True, "false": False}[value.lower()]
        if tuple in origins:
            return tuple(int(each) for each in value.split(",") if each)
        if int in origins:
            return int(value)
        if float in origins:
            return float(value)
    except (ValueError, KeyError):
        way = "use true or false" if bool in origins else "give a number"
        if tuple in origins:
            way = "list expert numbers, as 0,3,5"
        raise InputError(f"--set {text} cannot be read", "nothing was routed", way) from None
    return value
