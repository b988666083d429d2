"""What `costprof sweep` prints: the plan before, the report after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from costprof.cli.console import print_json
from costprof.cli.sweep_budget import budget_line

if TYPE_CHECKING:
    from costprof.cli.sweep_energy import EnergyOptions
    from costprof.profiler.plan import Plan
    from costprof.profiler.sweep import SweepReport


def print_plan(plan: Plan, energy: EnergyOptions | None, as_json: bool) -> None:
    """Print every run and scenario, and how long they will take about."""
    seconds = plan.estimated_s()
    energy_s = energy.estimated_s(plan) if energy else 0.0
    if as_json:
        print_json(
            {
                "name": plan.name,
                "device": plan.device,
                "plan_id": plan.plan_id,
                "estimated_s": round(seconds + energy_s),
                "energy": {
                    "scenarios": [s.scenario_id for s in energy.scenarios(plan)] if energy else [],
                    "estimated_s": round(energy_s),
                },
                "runs": [
                    {
                        "run_id": run.run_id,
                        "scenarios": [
                            {"scenario_id": s.scenario_id, "label": s.label()}
                            for s in run.scenarios
                        ],
                    }
                    for run in plan.runs
                ],
            }
        )
        return
    for run in plan.runs:
        print(f"run {run.run_id}")
        for scenario in run.scenarios:
            print(f"  {scenario.scenario_id}  {scenario.label()}")
    print(
        f"{len(plan.scenarios)} scenarios in {len(plan.runs)} runs on {plan.device}, "
        f"about {seconds / 60:.1f} min (a rough estimate; re-measuring not counted)"
    )
    if energy:
        print(
            f"energy of {len(energy.scenarios(plan))} of them, three trials each, "
            f"about {energy_s / 60:.1f} min more"
        )


def print_report(
    report: SweepReport,
    backend: str,
    out: Path,
    notes: list[str],
    winners: list[dict[str, Any]],
    chosen: dict[str, Any] | None,
    as_json: bool,
) -> None:
    """Print what a search found or chose, how the scenarios went, and what else is to be known."""
    if as_json:
        print_json(
            {
                "out": str(out),
                "backend": backend,
                "statuses": report.statuses,
                "wall_s": report.wall_s,
                "measuring_s": report.measuring_s,
                "measuring_share": report.measuring_share,
                "notes": notes,
                "tiles": winners,
                "chosen": chosen,
            }
        )
        return
    for winner in winners:
        print(_winner_line(winner))
    if chosen is not None:
        print(budget_line(chosen))
    counts = ", ".join(f"{number} {status}" for status, number in sorted(report.statuses.items()))
    print(f"{out}: {counts}; backend {backend}")
    if report.wall_s and report.measuring_s:
        print(
            f"{report.wall_s:.0f} s, {report.measuring_share:.0%} of them inside timed loops; "
            f"look at it with: costprof inspect {out}"
        )
    for note in notes:
        print(note)


def _winner_line(winner: dict[str, Any]) -> str:
    used = f"{winner['measured']} of {winner['configs']} configs measured"
    used += f", {winner['failed']} failed" if winner["failed"] else ""
    if winner["config"] is None:
        return f"{winner['label']}: no config ran; {used}"
    config = " ".join(f"{name}={value}" for name, value in sorted(winner["config"].items()))
    gain = winner["expected_gain"]
    left = "" if gain is None else f" (expected gain of going on: {gain:.1%})"
    return (
        f"{winner['label']}: {winner['latency_us_p50']:.1f} us with {config}; {used}; "
        f"stopped: {winner['stopped']}{left}"
    )
