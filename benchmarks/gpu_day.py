"""Measure a GPU at hand, most wanted first, writing each result as it comes.

    python benchmarks/gpu_day.py                 # goes on where an earlier run stopped
    python benchmarks/gpu_day.py --seconds 540   # starts no step it expects not to finish
    python benchmarks/gpu_day.py --only ceilings --only "sweep Qwen3-30B-A3B"
    python benchmarks/gpu_day.py --device cpu    # a rehearsal on tiny shapes
    python benchmarks/gpu_day.py --dry-run       # the steps, and which are done

Steps, in this order: the GPU tests; the two ceilings (copy bandwidth, bf16 matrix product); a sweep
of each named model's experts and layers with its cost table, and its layers against the ceilings;
energy of a few scenarios of each; top-k against the table's policy on a really run layer; counters;
launches compared; tile configs searched; backends compared, nsys with CUDA tracing among them; a
trace of heating up and cooling down. Results go to `data/measured/DEVICE/`, each with the device's
fingerprint. Clocks, power limits and modes are read, never set.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from costprof.core.device import DeviceFingerprint, detect_device, gpu_uuid, software_versions
from costprof.core.files import write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("Qwen3-30B-A3B", "OLMoE-1B-7B", "Mixtral-8x7B", "gpt-oss-20b", "DeepSeek-V3")
EXPERT_PARALLEL = {"DeepSeek-V3": 16}
BATCHES = (1, 4, 16, 64, 256)
REPEATS = 20
HEAT_S, COOL_S, TRACE_PERIOD_S = 120.0, 120.0, 0.1


@dataclass(frozen=True)
class Step:
    """Something to measure: done when `result` exists."""

    name: str
    result: Path
    expected_s: float
    run: Callable[[], None]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--only", action="append", metavar="STEP", help="run only this step")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device is visible; try --device cpu for a rehearsal", file=sys.stderr)
        return 3
    device = detect_device("cpu" if options.device == "cpu" else "gpu")
    slug = re.sub(r"[^a-z0-9]+", "-", device.name.lower()).strip("-")
    out = options.out or ROOT / "data" / "measured" / slug
    planned = steps(options.device, device, out)
    unknown = set(options.only or ()) - {step.name for step in planned}
    if unknown:
        print(f"no step is called {min(unknown)!r}; see --dry-run", file=sys.stderr)
        return 2
    began = time.monotonic()
    left_out = 0
    for step in planned:
        if options.only and step.name not in options.only:
            continue
        spent = time.monotonic() - began
        if step.result.exists():
            print(f"{step.name}: done before")
        elif options.dry_run or spent + step.expected_s > options.seconds:
            print(f"{step.name}: not run, about {step.expected_s:.0f} s")
            left_out += 1
        else:
            print(f"{step.name}: begins at {spent:.0f} s", flush=True)
            step.run()
            if not step.result.exists():
                print(f"{step.name}: left no result; the others go on", file=sys.stderr)
                left_out += 1
    return 1 if left_out and not options.dry_run else 0


def steps(device_name: str, device: DeviceFingerprint, out: Path) -> list[Step]:
    """Every step, most wanted first."""
    on_gpu = device_name == "cuda"
    models = MODELS if on_gpu else ("cpu-smoke",)
    rehearse = () if on_gpu else ("--rehearse",)
    ceilings_file = out / "ceilings.json"
    found = [
        Step("GPU tests", out / "tests.txt", 180, lambda: gpu_tests(out / "tests.txt")),
        Step("ceilings", ceilings_file, 30, lambda: ceilings(device_name, device, ceilings_file)),
    ]
    for model in models:
        found += model_steps(model, out, ceilings_file, on_gpu=on_gpu)
    first = out / models[0]
    search = out / f"{models[0]}-tiles"
    launches, backends, heat = out / "launches.json", out / "backends.json", out / "heat.json"
    found += [
        Step("counters", first / "counters.json", 200, lambda: counters(models[0], first)),
        Step(
            "launches",
            launches,
            120,
            lambda: script("schedulers.py", "--out", str(launches), *rehearse),
        ),
        Step("tile search", search / "search.json", 600, lambda: tiles(models[0], search, on_gpu)),
        Step(
            "backends",
            backends,
            200,
            lambda: script("backends.py", "--out", str(backends), "--device", device_name),
        ),
    ]
    if on_gpu:
        found.append(Step("heat", heat, HEAT_S + COOL_S + 10, lambda: heat_trace(device, heat)))
    return found


def model_steps(model: str, out: Path, ceilings_file: Path, *, on_gpu: bool) -> list[Step]:
    """The steps of one model, in the order that they need each other."""
    folder = out / model
    table, against = folder / "table.parquet", folder / "against_ceilings.json"
    found = [
        Step(f"sweep {model}", table, 240, lambda: sweep_and_fit(model, folder)),
        Step(
            f"ceilings of {model}",
            against,
            5,
            lambda: keep(
                against,
                "against_ceilings.py",
                *(str(folder), "--ceilings", str(ceilings_file), "--json"),
            ),
        ),
    ]
    if on_gpu:  # a CPU has no counter to read
        energy_file = folder / "energy.json"
        found.append(Step(f"energy {model}", energy_file, 320, lambda: energy(model, folder)))
    found += [
        Step(
            f"route {model} {batch}",
            folder / f"route-{batch}.json",
            20,
            lambda batch=batch: route(table, batch, folder / f"route-{batch}.json"),
        )
        for batch in BATCHES
    ]
    return found


def gpu_tests(result: Path) -> None:
    """Run what is marked `gpu`; what pytest printed stays, as done only where all passed."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "gpu", "-q", str(ROOT / "tests")],
        capture_output=True,
        text=True,
        check=False,
    )
    passed = done.returncode == 0
    kept = result if passed else result.with_stem("tests-failed")
    write_text(kept, done.stdout[-20_000:] + done.stderr[-2_000:])
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    print(f"GPU tests: {lines[-1] if lines else 'pytest printed nothing'}; see {kept}")


def sweep_command(model: str, folder: Path, *options: str) -> list[str]:
    """`costprof sweep` of `model`, going on with what is in `folder`."""
    degree = EXPERT_PARALLEL.get(model)
    shard = ["--ep", str(degree)] if degree else []
    return ["sweep", "--preset", model, "--out", str(folder), "--resume", *shard, *options]


def sweep_and_fit(model: str, folder: Path) -> None:
    """Time the scenarios of `model` in CUDA graphs, or by the clock, and fit its cost table."""
    if costprof(*sweep_command(model, folder, "--backend", "inprocess")) == 0:
        costprof("fit", str(folder), "--out", str(folder / "table.parquet"), "--force")


def energy(model: str, folder: Path) -> None:
    """Measure the energy of a few scenarios, and fit the table again with it."""
    command = sweep_command(model, folder, "--backend", "inprocess", "--energy", "4", "--json")
    if costprof(*command, keep_as=folder / "energy.json") == 0:
        costprof("fit", str(folder), "--out", str(folder / "table.parquet"), "--force")


def counters(model: str, folder: Path) -> None:
    """Read hardware counters of a few scenarios."""
    options = ("--backend", "inprocess", "--counters", "ncu:20", "--json")
    costprof(*sweep_command(model, folder, *options), keep_as=folder / "counters.json")


def tiles(model: str, folder: Path, on_gpu: bool) -> None:
    """Search the tile configs of the layers of `model`, or of a blocked CPU kernel."""
    spec = ROOT / "benchmarks" / ("tiles_gpu.toml" if on_gpu else "tiles_cpu.toml")
    options = ("--backend", "inprocess", "--search", "tiles", "--json", "--resume")
    # Every config is compiled for both projections: seconds each.
    options += ("--search-budget", "0.02")
    costprof(*("sweep", str(spec), "--out", str(folder), *options), keep_as=folder / "search.json")


def route(table: Path, batch: int, result: Path) -> None:
    """Run a layer under plain top-k and under the table's policy."""
    costprof("route", str(table), "--tokens", str(batch), "--json", keep_as=result)


def costprof(*arguments: str, keep_as: Path | None = None) -> int:
    """Run the command line; keep its standard output where it ended well. Returns its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "costprof.cli.main", *arguments],
        stdout=subprocess.PIPE if keep_as else None,
        text=True,
        check=False,
    )
    if keep_as and done.returncode == 0:
        write_text(keep_as, done.stdout)
    return done.returncode


def script(name: str, *arguments: str) -> None:
    """Run another benchmark, which writes its own result."""
    subprocess.run([sys.executable, str(ROOT / "benchmarks" / name), *arguments], check=False)


def keep(result: Path, name: str, *arguments: str) -> None:
    """Run another benchmark and keep what it prints."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / name), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        write_text(result, done.stdout)


def heat_trace(device: DeviceFingerprint, result: Path) -> None:
    """Power, temperature and clocks ten times a second: two minutes of load, two of rest."""
    from costprof.profiler.energy.nvml import open_nvml

    reader = open_nvml(gpu_uuid(0))
    left = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    right = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    samples = []
    began = time.monotonic()
    try:
        while (now := time.monotonic() - began) < HEAT_S + COOL_S:
            if now < HEAT_S:
                for _ in range(8):  # a tenth of a second and less
                    left @ right
                torch.cuda.synchronize()
            else:
                time.sleep(TRACE_PERIOD_S)
            if not samples or now - samples[-1]["time_s"] >= TRACE_PERIOD_S:
                samples.append(
                    {
                        "time_s": now,
                        "loaded": now < HEAT_S,
                        "counter_mj": reader.counter_mj(),
                        "power_w": reader.power_w(),
                        **reader.conditions()._asdict(),
                    }
                )
    finally:
        reader.close()
    write_json(result, {"device": device.to_dict(), "samples": samples})


def ceilings(device_name: str, device: DeviceFingerprint, result: Path) -> None:
    """Measure a large copy and a large bf16 matrix product, medians with their spread."""
    on_gpu = device_name == "cuda"
    count, side = (2**31, 8192) if on_gpu else (2**24, 512)
    source = torch.randn(count // 4, device=device_name)
    target = torch.empty_like(source)
    copy_s = timed(lambda: target.copy_(source), on_gpu)
    left = torch.randn(side, side, device=device_name, dtype=torch.bfloat16)
    right = torch.randn(side, side, device=device_name, dtype=torch.bfloat16)
    product_s = timed(lambda: left @ right, on_gpu)
    write_json(
        result,
        {
            "device": device.to_dict(),
            "software": software_versions(),
            "copy_bytes_per_s": spread([2 * source.nbytes / s for s in copy_s]),
            "copy_counts": "bytes read plus bytes written",
            "bf16_matmul_flops": spread([2 * side**3 / s for s in product_s]),
            "bf16_matmul_side": side,
        },
    )
    print(json.dumps(json.loads(result.read_text()), indent=1))


def timed(call: Callable[[], object], on_gpu: bool) -> list[float]:
    """Seconds of each of `REPEATS` calls, by events on a GPU."""
    for _ in range(3):
        call()
    seconds = []
    for _ in range(REPEATS):
        if on_gpu:
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            seconds.append(start.elapsed_time(end) / 1e3)
        else:
            began = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - began)
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


if __name__ == "__main__":
    sys.exit(main())
