"""`costprof sweep --budget`: how many scenarios are chosen, and what is told of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from costprof.cli.console import error_line
from costprof.core.errors import InputError

if TYPE_CHECKING:
    from costprof.costmodel.sweep_search import Step, SweepSearch
    from costprof.profiler.plan import Plan

FEW = 200
"""Scenarios up to which a plan is measured whole unless told otherwise."""

SHARE = 1 / 3
"""Of a larger plan, the share that is measured at most unless told otherwise."""

TARGET_ERROR = 0.03
"""Expected error at which measuring a larger plan ends unless told otherwise."""

_NAMED = 6  # scenarios of a step that are told by name


def budget_search(
    plan: Plan, budget: str | None, target: float | None, *, isolate: bool
) -> tuple[SweepSearch | None, str | None]:
    """Return the search that the options ask for, None where all is measured, and what to note.

    Raises:
        InputError: a budget that is neither a whole number above 0 nor `all`, or one that cannot
            be kept.
    """
    scenarios = len(plan.scenarios)
    if budget is not None and budget != "all" and (not budget.isdecimal() or int(budget) < 1):
        raise InputError(
            f"--budget {budget!r} is no number of scenarios",
            "nothing was measured",
            "give a whole number above 0, or all",
        )
    note = None
    number = scenarios if budget in (None, "all") else min(int(str(budget)), scenarios)
    if budget is None and target is None and scenarios > FEW:
        number, target = max(FEW, round(SHARE * scenarios)), TARGET_ERROR
        note = (
            f"note: of {scenarios} scenarios the most telling {number} at most are measured, until "
            f"the expected error is {target:.0%}; --budget all measures every one"
        )
    if target is None and number == scenarios:
        return None, f"note: all {scenarios} scenarios are measured; --budget N chooses among them"
    from costprof.costmodel.sweep_search import sweep_search

    return sweep_search(plan, budget=number, target=target, isolate=isolate), note


def tell_step(step: Step) -> None:
    """Print what is measured next and why, as a note."""
    choice = step.choice
    if step.plan is None:
        return
    if choice.expected_error is None:
        why = "the ends and middle of each curve"
    else:
        why = f"expected error {choice.expected_error:.1%}; next, where it lowers that most"
    names = ", ".join(scenario.label() for scenario in step.added[:_NAMED])
    more = len(step.added) - _NAMED
    error_line(
        f"note: {why}: {len(step.added)} scenarios: {names}"
        + (f" and {more} more" if more > 0 else "")
    )


def budget_line(said: dict[str, Any]) -> str:
    """Return one line on what was measured of how much, how sure the rest is, and why it ended."""
    line = f"measured {said['measured']} of {said['scenarios']} scenarios"
    if said["expected_error"] is not None:
        line += f"; expected error of the others {said['expected_error']:.1%}"
    if said["check_error"] is not None:
        line += (
            f" (at {said['checks']} drawn by lot, each predicted without itself: "
            f"{said['check_error']:.1%})"
        )
    return f"{line}; stopped: {said['stopped']}"
