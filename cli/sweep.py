"""`costprof sweep`: plan, measure, write a dataset."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from costprof.cli.console import error_line, print_json
from costprof.core.errors import InputError

if TYPE_CHECKING:
    from costprof.cli.search import TileSearch
    from costprof.cli.sweep_energy import EnergyOptions
    from costprof.core.device import DeviceFingerprint
    from costprof.profiler.plan import Plan
    from costprof.profiler.scenario import DeviceName
    from costprof.profiler.spec import SweepSpec
    from costprof.profiler.sweep import SweepReport

INTERRUPTED = 130
_COUNTED = 20


def sweep(
    spec: Annotated[Path | None, typer.Argument(help="Sweep file (TOML).")] = None,
    preset: Annotated[str | None, typer.Option(help="A shipped sweep or a named model.")] = None,
    model_config: Annotated[
        Path | None, typer.Option(help="A Hugging Face config.json to measure the experts of.")
    ] = None,
    from_model: Annotated[
        str | None,
        typer.Option(help="module:function returning (model, inputs); run once to find shapes."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the dataset.")] = None,
    backend: Annotated[str, typer.Option(help="auto, nsys, torch-profiler or inprocess.")] = "auto",
    counters: Annotated[
        str | None,
        typer.Option(help="ncu: add hardware counters of 20 scenarios after timing; ncu:N of N."),
    ] = None,
    energy: Annotated[
        str | None, typer.Option(help="Measure energy of N scenarios, or all, after timing.")
    ] = None,
    energy_meter: Annotated[
        bool, typer.Option("--energy-meter", help="Energy is read by a wall meter, ingested later.")
    ] = False,
    energy_window: Annotated[
        float | None, typer.Option(help="Seconds of an energy window (5; 10 with a meter).")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda, over the spec's own.")] = None,
    ep: Annotated[int, typer.Option(help="Expert-parallel degree of a named model.")] = 1,
    tp: Annotated[int, typer.Option(help="Tensor-parallel degree of a named model.")] = 1,
    search: Annotated[
        str | None,
        typer.Option(help="tiles: let a model choose the tile configs that are measured."),
    ] = None,
    search_budget: Annotated[
        float, typer.Option(help="Share of a tile space measured at most, at each token count.")
    ] = 0.05,
    isolate: Annotated[bool, typer.Option("--isolate", help="One process a scenario.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the sweep in --out.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and its estimate, measure nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Measure what the experts of an MoE cost on this machine."""
    from costprof.cli.sweep_energy import energy_options
    from costprof.profiler.plan import make_plan

    chosen = _spec(spec, preset, model_config, from_model, ep, tp)
    device_name = _device(device or chosen.device, planning=dry_run)
    if search not in (None, "tiles"):
        raise InputError(
            f"--search {search!r} is unknown", "nothing was measured", "use --search tiles"
        )
    plan = make_plan(chosen.without_samples() if search else chosen, device_name, isolate=isolate)
    counted = _counted(counters)
    options = energy_options(plan, energy, energy_meter, energy_window)
    tiles = _tile_search(plan, search_budget, isolate=isolate) if search else None
    if dry_run:
        _print_plan(tiles.first() if tiles else plan, options, as_json)
        if tiles and not as_json:
            print(f"a start: the search measures {tiles.most()} tile configs at most")
        return
    if out is None:
        raise InputError(
            "--out is missing", "there is nowhere to write to", "name a folder with --out DIR"
        )
    _measure(plan, tiles, out, backend, counted, options, resume=resume, as_json=as_json)


def _tile_search(plan: Plan, budget: float, *, isolate: bool) -> TileSearch:
    from costprof.cli.search import tile_search
    from costprof.core.device import detect_device
    from costprof.core.errors import ToolError

    try:
        device = detect_device("gpu" if plan.device == "cuda" else "cpu")
        threads = plan.timing.threads if plan.device == "cpu" else None
        units = threads or device.units
    except ToolError:  # planning for a GPU elsewhere
        units = 1
    return tile_search(plan, budget=budget, units=units, isolate=isolate)


def _measure(
    plan: Plan,
    tiles: TileSearch | None,
    out: Path,
    backend_name: str,
    counted: int,
    energy: EnergyOptions | None,
    *,
    resume: bool,
    as_json: bool,
) -> None:
    from costprof.cli.energy import energy_model
    from costprof.cli.progress import SweepProgress
    from costprof.cli.sweep_energy import measure_energy, power_source
    from costprof.core.device import detect_device, software_versions
    from costprof.core.files import writable_folder
    from costprof.profiler.backends.choose import choose_backend
    from costprof.profiler.journal import check_folder, sweep_lock
    from costprof.profiler.sweep import Sweep, finished_runs

    fingerprint = detect_device("gpu" if plan.device == "cuda" else "cpu")
    power = power_source(energy, plan.device)
    backend = choose_backend(backend_name, plan.device, plan.timing.max_repetitions)
    writable_folder(out)
    with sweep_lock(out):
        plan_id = (tiles.plan if tiles else plan).plan_id
        check_folder(out, plan_id, backend=backend.name, device=fingerprint.name, resume=resume)
        sweep_of = functools.partial(
            Sweep,
            folder=out,
            backend=backend,
            device=fingerprint,
            software=software_versions(),
            energy_model=energy_model(fingerprint, threads=plan.timing.threads),
        )
        winners: list[dict[str, Any]] = []
        try:
            if tiles:
                plan, report, winners = tiles.run(lambda grown: sweep_of(plan=grown), out)
            else:
                with SweepProgress(plan, finished_runs(plan, out)) as progress:
                    report = sweep_of(plan=plan).run(progress)
            notes = [f"{number} scenarios: {note}" for note, number in report.notes.items()]
            notes += _count_events(plan, out, fingerprint, counted) if counted else []
            if energy is not None:
                notes += measure_energy(energy, power, plan, out, fingerprint).lines()
        except KeyboardInterrupt:
            error_line(
                f"interrupted; what was measured is in {out}; go on with the same command "
                "and --resume"
            )
            raise SystemExit(INTERRUPTED) from None
    _print_report(report, backend.name, out, notes, winners, as_json)


def _spec(
    path: Path | None,
    preset: str | None,
    model_config: Path | None,
    from_model: str | None,
    ep: int,
    tp: int,
) -> SweepSpec:
    given = [value for value in (path, preset, model_config, from_model) if value is not None]
    if len(given) != 1:
        raise InputError(
            f"{len(given)} of SPEC, --preset, --model-config and --from-model were given",
            "it is not clear what to measure",
            "give exactly one, for example --preset cpu-demo",
        )
    if (ep, tp) != (1, 1) and preset is None and model_config is None:
        raise InputError(
            "--ep and --tp shard a named model or a config.json",
            "nothing was planned",
            "leave them out, or write the shard's sizes into the sweep file",
        )
    if path is not None:
        from costprof.profiler.spec import load_spec

        return load_spec(path)
    notes: list[str]
    if preset is not None:
        from costprof.profiler.presets import load_preset

        spec, notes = load_preset(preset, ep_size=ep, tp_size=tp)
    elif model_config is not None:
        from costprof.profiler.presets import spec_from_config_file

        spec, notes = spec_from_config_file(model_config, ep_size=ep, tp_size=tp)
    else:
        from costprof.profiler.from_model import spec_from_model

        spec, notes = spec_from_model(str(from_model))
    for note in notes:
        error_line(f"note: {note}")
    return spec


def _device(name: str, *, planning: bool) -> DeviceName:
    """Which device to measure; a plan for a GPU can be made anywhere."""
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"device {name!r} is unknown", "nothing was measured", "use cpu or cuda")
    if name == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available() or (name == "cuda" and planning):
        return "cuda"
    if name == "cuda":
        raise InputError(
            "torch sees no CUDA device",
            "nothing was measured",
            "see costprof doctor, or measure the CPU with --device cpu",
        )
    return "cpu"


def _counted(option: str | None) -> int:
    """How many scenarios --counters asks for."""
    if option is None:
        return 0
    match = re.fullmatch(r"ncu(?::([1-9]\d{0,4}))?", option)
    if match is None:
        raise InputError(
            f"--counters {option!r} is unknown",
            "nothing was measured",
            "use --counters ncu, or ncu:N for N scenarios",
        )
    return int(match[1] or _COUNTED)


def _count_events(plan: Plan, out: Path, fingerprint: DeviceFingerprint, limit: int) -> list[str]:
    from costprof.profiler.counters import add_counters

    report = add_counters(plan, out, fingerprint, limit=limit)
    before = f", {report.known} before" if report.known else ""
    told = [f"ncu counted {report.counted} scenarios{before}"]
    return [*(told if report.counted or report.known else []), *report.problems]


def _print_plan(plan: Plan, energy: EnergyOptions | None, as_json: bool) -> None:
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


def _print_report(
    report: SweepReport,
    backend: str,
    out: Path,
    notes: list[str],
    winners: list[dict[str, Any]],
    as_json: bool,
) -> None:
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
            }
        )
        return
    for winner in winners:
        print(_winner_line(winner))
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
