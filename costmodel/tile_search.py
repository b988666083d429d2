"""Which tile configs of a plan are measured next: the search of `costprof sweep --search tiles`.

A plan is split into targets, classes whose kernel has a tile space, and the rest. Each step adds a
few configs to the plan. What is chosen depends on the rows alone, so that `--resume` chooses the
same again and finds it measured. Pure: the loop that measures stands in the command line.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from costprof.core.errors import InputError
from costprof.core.expert import DTYPE_BYTES
from costprof.core.hashing import content_id
from costprof.core.work import fc1_width
from costprof.costmodel.acquisition import Choice, Measured, TileSpace, choose
from costprof.costmodel.measurements import is_usable, log_variance
from costprof.costmodel.tile_features import TileProblem
from costprof.profiler.plan import Plan
from costprof.profiler.scenario import Scenario
from costprof.profiler.tiles import kernel_tiles

LEAST_BUDGET = 8
"""Configs a token count is always allowed, however small the space."""
WHOLE = ("expert", "layer")
BATCH = 4
"""Configs of a token count that are chosen and measured together: a process start costs seconds."""

Rows = Mapping[str, dict[str, Any]]
"""Rows of `measurements/` by scenario id."""


@dataclass(frozen=True)
class Target:
    """One class whose configs are searched: a scenario without config for each token count."""

    scenarios: tuple[Scenario, ...]
    space: TileSpace
    budget: int

    def at(self, tokens: int, config: int) -> Scenario:
        """Return the scenario of a config, both by index."""
        plain = self.scenarios[tokens]
        chosen = dict(self.space.configs[config])
        return dataclasses.replace(plain, kernel=dataclasses.replace(plain.kernel, config=chosen))


@dataclass(frozen=True)
class Step:
    """The plan to measure next, None where the search is done, and the choices behind it."""

    plan: Plan | None
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class TileSearch:
    """A plan that grows: the `targets` to search, and the `plan` of everything else."""

    plan: Plan
    targets: tuple[Target, ...]
    isolate: bool

    def first(self) -> Plan:
        """Return the plan with each target's start set."""
        return self._grown(self.plan, tuple(self._choice(target, {}) for target in self.targets))

    def step(self, plan: Plan, rows: Rows) -> Step:
        """Return what follows on `rows`, the measurements of `plan` by scenario id (none at first).

        When every target is done, each winner is measured at the neighbouring token counts too,
        budget or not, so that it has a curve there.
        """
        choices = tuple(self._choice(target, rows) for target in self.targets)
        grown = self._grown(plan, choices)
        if rows and len(grown.runs) == len(plan.runs):
            grown = plan.with_scenarios(self._beside(choices), isolate=self.isolate)
        done = bool(rows) and len(grown.runs) == len(plan.runs)
        return Step(None if done else grown, choices)

    def most(self) -> int:
        """Return how many searched scenarios there can be at most."""
        return sum(target.budget * len(target.scenarios) for target in self.targets)

    def _choice(self, target: Target, rows: Rows) -> Choice:
        return choose(
            target.space, _measured(target, rows), budget=target.budget, batch=BATCH, seed=0
        )

    def _grown(self, plan: Plan, choices: tuple[Choice, ...]) -> Plan:
        more = [
            target.at(tokens, config)
            for target, choice in zip(self.targets, choices, strict=True)
            for tokens, config in choice.next
        ]
        return plan.with_scenarios(more, isolate=self.isolate)

    def _beside(self, choices: tuple[Choice, ...]) -> list[Scenario]:
        """Return each winner at the token counts next to its own."""
        return [
            target.at(neighbour, best)
            for target, choice in zip(self.targets, choices, strict=True)
            for tokens, best in enumerate(choice.best)
            for neighbour in (tokens - 1, tokens + 1)
            if best is not None and 0 <= neighbour < len(target.scenarios)
        ]

    def winners(self, choices: tuple[Choice, ...], rows: Rows) -> list[dict[str, Any]]:
        """Describe the best config of each class and token count, and why the search stopped."""
        found = []
        for target, choice in zip(self.targets, choices, strict=True):
            measured = _measured(target, rows)
            for tokens, scenario in enumerate(target.scenarios):
                best = choice.best[tokens]
                mine = [m for m in measured if m.tokens == tokens]
                row = {} if best is None else rows[target.at(tokens, best).scenario_id]
                found.append(
                    {
                        "class_id": scenario.class_id,
                        "label": scenario.label(),
                        "tokens": scenario.tokens,
                        "config": None if best is None else dict(target.space.configs[best]),
                        "latency_us_p50": row.get("latency_us_p50"),
                        "measured": len(mine),
                        "failed": sum(m.latency_us is None for m in mine),
                        "configs": len(target.space.configs),
                        "expected_gain": choice.gain[tokens],
                        "stopped": choice.stopped[tokens],
                    }
                )
        return found


def tile_search(plan: Plan, *, budget: float, units: int, isolate: bool = False) -> TileSearch:
    """Split `plan` into what has a tile space and no configs of its own, and the rest.

    Args:
        budget: Share of a space that may be measured, at each token count.
        units: Multiprocessors of the device, or threads of a CPU.

    Raises:
        InputError: a budget outside (0, 1], or no kernel of the plan has a tile space.
    """
    if not 0.0 < budget <= 1.0:
        raise InputError(
            f"--search-budget is {budget}",
            "nothing was measured",
            "give the share of each tile space to measure, above 0 and at most 1",
        )
    grouped: dict[str, list[Scenario]] = {}
    for scenario in plan.scenarios:
        grouped.setdefault(_subject(scenario), []).append(scenario)
    made = {name: _target(scenarios, budget, units) for name, scenarios in grouped.items()}
    found = {name: target for name, target in made.items() if target is not None}
    # Projections alone are not what is served: searched only where nothing whole is.
    whole = {name: each for name, each in found.items() if each.scenarios[0].op in WHOLE}
    found = whole or found
    targets = list(found.values())
    fixed = [s for name, group in grouped.items() if name not in found for s in group]
    if not targets:
        raise InputError(
            "no kernel of this sweep has a tile_space, or all have configs of their own",
            "there is nothing to search",
            "name kernels with a tile space under 'kernels' in the sweep file, without 'configs'",
        )
    identity = {
        "fixed": [scenario.scenario_id for scenario in fixed],
        "targets": [_identity(target) for target in targets],
        "batch": BATCH,
    }
    rest = dataclasses.replace(plan, runs=(), search=identity)
    return TileSearch(rest.with_scenarios(fixed, isolate=isolate), tuple(targets), isolate)


def _target(scenarios: list[Scenario], budget: float, units: int) -> Target | None:
    if any(scenario.kernel.config for scenario in scenarios):
        return None
    tiles = kernel_tiles(scenarios[0].kernel.name, scenarios[0].expert)
    if tiles is None:
        return None
    ordered = tuple(sorted(scenarios, key=lambda scenario: scenario.tokens))
    problems = tuple(_problem(scenario, units) for scenario in ordered)
    allowed = max(math.ceil(budget * len(tiles.configs)), LEAST_BUDGET)
    return Target(
        ordered,
        TileSpace(tiles.choices, tiles.configs, problems),
        min(allowed, len(tiles.configs)),
    )


def _subject(scenario: Scenario) -> str:
    """What the scenarios of one search share: all but tokens, counts and config."""
    layer = scenario.layer
    shape = () if layer is None else (layer.experts, layer.top_k, layer.ep_size, layer.tp_size)
    return content_id([scenario.class_id, *shape, layer.distribution if layer else ""])


def _identity(target: Target) -> list[Any]:
    space = content_id([dict(config) for config in target.space.configs])
    return [[s.scenario_id for s in target.scenarios], space, target.budget]


def _problem(scenario: Scenario, units: int) -> TileProblem:
    expert = scenario.expert
    layer = scenario.layer
    narrow = scenario.op == "fc2"
    return TileProblem(
        tokens=scenario.tokens,
        rows=(scenario.tokens,) if layer is None else tuple(n for n in layer.counts if n),
        columns=expert.d_model if narrow else max(fc1_width(expert), 1),
        depth=max(expert.d_ff, 1) if narrow else expert.d_model,
        units=max(units, 1),
        value_bytes=DTYPE_BYTES[expert.dtype],
    )


def _measured(target: Target, rows: Rows) -> list[Measured]:
    """Return what `rows`, by scenario id, say of the target, in a fixed order."""
    found: list[Measured] = []
    if not rows:
        return found
    for tokens in range(len(target.scenarios)):
        for config in range(len(target.space.configs)):
            row = rows.get(target.at(tokens, config).scenario_id)
            if row is None:
                continue
            if is_usable(row):
                found.append(Measured(tokens, config, row["latency_us_p50"], log_variance(row)))
            else:
                found.append(Measured(tokens, config, None))
    return found
