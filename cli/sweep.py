"""`costprof sweep`: plan, measure, write a dataset."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from costprof.cli.console import error_line
from costprof.cli.sweep_report import print_plan, print_report
from costprof.core.errors import InputError

if TYPE_CHECKING:
    from costprof.cli.sweep_energy import EnergyOptions
    from costprof.core.device import DeviceFingerprint
    from costprof.costmodel.sweep_search import SweepSearch
    from costprof.costmodel.tile_search import TileSearch
    from costprof.profiler.plan import Plan

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
    budget: Annotated[
        str | None,
        typer.Option(help="Measure the N most telling scenarios at most; all: every one."),
    ] = None,
    target_error: Annotated[
        float | None, typer.Option(help="Stop at this expected error, for example 0.03.")
    ] = None,
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
    from costprof.cli.sweep_budget import budget_search
    from costprof.cli.sweep_energy import energy_options
    from costprof.cli.sweep_request import device_to_measure, sweep_spec
    from costprof.profiler.plan import make_plan

    chosen = sweep_spec(spec, preset, model_config, from_model, ep, tp)
    device_name = device_to_measure(device or chosen.device, planning=dry_run)
    if search not in (None, "tiles"):
        raise InputError(
            f"--search {search!r} is unknown", "nothing was measured", "use --search tiles"
        )
    if search and (budget is not None or target_error is not None):
        raise InputError(
            "--budget and --target-error choose scenarios, --search tiles tile configs",
            "nothing was measured",
            "use one at a time",
        )
    plan = make_plan(chosen.without_samples() if search else chosen, device_name, isolate=isolate)
    counted = _counted(counters)
    options = energy_options(plan, energy, energy_meter, energy_window)
    tiles = _tile_search(plan, search_budget, isolate=isolate) if search else None
    few, note = None, None
    if not search:
        few, note = budget_search(plan, budget, target_error, isolate=isolate)
    if dry_run:
        if note:
            error_line(note)
        grows = tiles or few
        print_plan(grows.first() if grows else plan, options, as_json)
        if tiles and not as_json:
            print(f"a start: the search measures {tiles.most()} tile configs at most")
        if few and not as_json:
            print(f"a start: {few.budget} of {len(plan.scenarios)} scenarios are measured at most")
        return
    if out is None:
        raise InputError(
            "--out is missing", "there is nowhere to write to", "name a folder with --out DIR"
        )
    _measure(plan, tiles, few, note, out, backend, counted, options, resume=resume, as_json=as_json)


def _tile_search(plan: Plan, budget: float, *, isolate: bool) -> TileSearch:
    from costprof.core.device import detect_device
    from costprof.core.errors import ToolError
    from costprof.costmodel.tile_search import tile_search

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
    few: SweepSearch | None,
    note: str | None,
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
    from costprof.cli.search import run_search
    from costprof.cli.sweep_budget import tell_step
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
        plan_id = (tiles.plan if tiles else few.plan if few else plan).plan_id
        check_folder(out, plan_id, backend=backend.name, device=fingerprint.name, resume=resume)
        if note:
            error_line(note)
        sweep_of = functools.partial(
            Sweep,
            folder=out,
            backend=backend,
            device=fingerprint,
            software=software_versions(),
            energy_model=energy_model(fingerprint, threads=plan.timing.threads),
        )
        winners: list[dict[str, Any]] = []
        chosen: dict[str, Any] | None = None
        try:
            if tiles:
                tiled = run_search(tiles, lambda grown: sweep_of(plan=grown), out)
                plan, report = tiled.plan, tiled.report
                winners = tiles.winners(tiled.last.choices, tiled.rows)
            elif few:
                told = run_search(few, lambda grown: sweep_of(plan=grown), out, tell_step)
                plan, report = told.plan, told.report
                chosen = few.summary(told.last, told.rows)
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
    print_report(report, backend.name, out, notes, winners, chosen, as_json)


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
