"""Which scenarios of a plan are measured next: the choice of `costprof sweep --budget`.

Each step adds the scenarios that `sweep_choice` chooses to the plan. What is chosen depends on the
rows alone, so that `--resume` chooses the same again and finds it measured. Pure: the loop that
measures stands in the command line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from costprof.core.errors import InputError
from costprof.core.hashing import content_id
from costprof.costmodel.measurements import is_usable, log_variance
from costprof.costmodel.sweep_choice import (
    START,
    Reading,
    SweepChoice,
    SweepCurve,
    choose_scenarios,
)
from costprof.profiler.plan import Plan
from costprof.profiler.scenario import Scenario

_STEPS = 8
_LEAST_BATCH = 4

Rows = Mapping[str, dict[str, Any]]
"""Rows of `measurements/` by scenario id."""


@dataclass(frozen=True)
class Step:
    """The plan to measure next, None where the choice is done, and what is new in it and why."""

    plan: Plan | None
    choice: SweepChoice
    added: tuple[Scenario, ...]


@dataclass(frozen=True)
class SweepSearch:
    """A plan that grows: `plan` is empty at first, `full` holds every scenario there is."""

    plan: Plan
    full: Plan
    curves: tuple[tuple[Scenario, ...], ...]
    sites: tuple[SweepCurve, ...]
    budget: int
    target: float | None
    isolate: bool

    def first(self) -> Plan:
        """Return the plan of what every curve begins with."""
        step = self.step(self.plan, {})
        return step.plan or self.plan

    def step(self, plan: Plan, rows: Rows) -> Step:
        """Return what follows on `rows`, the measurements of `plan` by scenario id."""
        measured = {
            (c, position): _reading(rows[scenario.scenario_id])
            for c, scenarios in enumerate(self.curves)
            for position, scenario in enumerate(scenarios)
            if scenario.scenario_id in rows
        }
        choice = choose_scenarios(
            self.sites,
            measured,
            budget=self.budget,
            batch=self.batch,
            target=self.target,
        )
        chosen = {self.curves[c][position].scenario_id for c, position in choice.next}
        added = tuple(s for s in self.full.scenarios if s.scenario_id in chosen)
        grown = plan.with_scenarios(list(added), isolate=self.isolate) if added else None
        return Step(grown, choice, added)

    @property
    def batch(self) -> int:
        """How many scenarios are chosen at once: a process start costs seconds."""
        return max(_LEAST_BATCH, -(-self.budget // _STEPS))

    def summary(self, step: Step, rows: Rows) -> dict[str, Any]:
        """Say how many of how many scenarios were measured, how sure the rest is, and why."""
        choice = step.choice
        return {
            "measured": len(rows),
            "scenarios": len(self.full.scenarios),
            "budget": self.budget,
            "target_error": self.target,
            "expected_error": choice.expected_error,
            "check_error": choice.check_error,
            "checks": choice.checks,
            "stopped": choice.stopped,
        }


def sweep_search(
    plan: Plan, *, budget: int, target: float | None, isolate: bool = False
) -> SweepSearch:
    """Let the scenarios of `plan` be chosen: `budget` of them at most, until the `target` error.

    Raises:
        InputError: a target outside (0, 1), or a budget that leaves a curve without any point.
    """
    if target is not None and not 0.0 < target < 1.0:
        raise InputError(
            f"--target-error is {target}",
            "nothing was measured",
            "give the mean relative error to stop at, for example 0.03",
        )
    grouped: dict[str, list[Scenario]] = {}
    for scenario in plan.scenarios:
        grouped.setdefault(_subject(scenario), []).append(scenario)
    curves = tuple(tuple(scenarios) for scenarios in grouped.values())
    if budget < len(curves):
        raise InputError(
            f"--budget {budget} is less than the {len(curves)} curves of this sweep",
            "some of its experts could not be priced at all",
            f"give at least {len(curves)}; {START * len(curves)} let each begin with its ends "
            "and middle",
        )
    number = min(budget, len(plan.scenarios))
    identity = {
        "scenarios": [scenario.scenario_id for scenario in plan.scenarios],
        "budget": number,
        "target": target,
    }
    empty = dataclasses.replace(plan, runs=(), search=identity)
    sites = tuple(_curve(scenarios) for scenarios in curves)
    return SweepSearch(empty, plan, curves, sites, number, target, isolate)


def _subject(scenario: Scenario) -> str:
    """What the scenarios of one curve share: all but tokens and counts."""
    layer = scenario.layer
    shape = () if layer is None else (layer.experts, layer.top_k, layer.ep_size, layer.tp_size)
    return content_id([scenario.class_id, scenario.kernel.to_dict(), *shape])


def _curve(scenarios: tuple[Scenario, ...]) -> SweepCurve:
    first, work = scenarios[0], [scenario.work() for scenario in scenarios]
    return SweepCurve(
        expert=first.expert,
        op=first.op,
        kernel=first.kernel,
        cache_state=first.cache_state,
        x=np.array([_site(scenario) for scenario in scenarios], dtype=np.float64),
        flops=np.array([each.flops for each in work]),
        bytes=np.array([each.bytes for each in work]),
    )


def _site(scenario: Scenario) -> list[float]:
    tokens = float(np.log2(scenario.tokens))
    if scenario.layer is None:
        return [tokens]
    counts = np.array(scenario.layer.counts)
    return [tokens, float(np.log2(max((counts > 0).sum(), 1))), float(np.log2(max(counts)))]


def _reading(row: Mapping[str, Any]) -> Reading:
    return Reading(row["latency_us_p50"], log_variance(row)) if is_usable(row) else Reading(None)
