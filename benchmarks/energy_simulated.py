"""The energy procedure and two naive readings on a *simulated* GPU whose joules are known.

    python benchmarks/energy_simulated.py [--seeds 25] [--json]

A kernel of 50 µs on a GPU whose counter ticks every 20, 50 or 100 ms and whose power sensor looks
at a quarter of the time; chips heat up and leak. What the procedure finds is set against the truth,
beside power times time and a counter read before and after a burst of 5 ms.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

from costprof.profiler.energy.windows import read_trial

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
import simulated_nvml as simulated

TICKS_S = (0.02, 0.05, 0.1)
CALL_US, BURST_CALLS = 50.0, 100


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=25)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    trials = [(tick_s, seed) for tick_s in TICKS_S for seed in range(options.seeds)]
    total, active, disagreement, rejected = [], [], [], 0
    for tick_s, seed in trials:
        recorded = simulated.record(tick_s=tick_s, seed=seed, call_us=CALL_US)
        found = read_trial(*recorded.arguments())
        if found["status"] != "accepted":
            rejected += 1
            continue
        start_s, end_s = recorded.progress.time_s[0], recorded.progress.time_s[-1]
        calls = recorded.gpu.calls_at(end_s) - recorded.gpu.calls_at(start_s)
        true_mj = recorded.gpu.energy_mj(start_s, end_s) / calls
        true_active_mj = true_mj - recorded.gpu.idle_w * CALL_US * 1e-3
        total.append(abs(found["energy_mj"] / true_mj - 1))
        active.append(abs(found["energy_active_mj"] / true_active_mj - 1))
        disagreement.append(abs(found["disagreement"]))
    by_counter, by_power = zip(*(naive(tick_s, seed) for tick_s, seed in trials), strict=True)
    figures = {
        "procedure, total energy": total,
        "procedure, active energy": active,
        "procedure, counter against integral": disagreement,
        "naive, power times time": list(by_power),
        "naive, counter around a burst": list(by_counter),
    }
    if options.json:
        json.dump({"trials": len(trials), "rejected": rejected, "errors": figures}, sys.stdout)
        return 0
    print(f"simulated: {len(trials)} trials, {rejected} rejected; errors, median (least to most)")
    for name, errors in figures.items():
        median = statistics.median(errors)
        print(f"{name:<38} {median:7.2%} ({min(errors):.2%} to {max(errors):.2%})")
    return 0


def naive(tick_s: float, seed: int) -> tuple[float, float]:
    """Relative errors of the counter around one burst, and of power times time at its end."""
    start_s = 2.0 + 0.01 * seed
    end_s = start_s + BURST_CALLS * CALL_US * 1e-6
    gpu = simulated.SimulatedGpu(
        loads=((start_s, end_s),), duration_s=4.0, tick_s=tick_s, seed=seed
    )
    true_mj = gpu.energy_mj(start_s, end_s) / BURST_CALLS
    clock = simulated.VirtualClock()
    nvml = simulated.SimulatedNvml(gpu, clock)
    clock.now_s = start_s
    before_mj = nvml.nvmlDeviceGetTotalEnergyConsumption(0)
    clock.now_s = end_s
    counted_mj = (nvml.nvmlDeviceGetTotalEnergyConsumption(0) - before_mj) / BURST_CALLS
    read_mj = nvml.nvmlDeviceGetPowerUsage(0) / 1e3 * CALL_US * 1e-3
    return abs(counted_mj / true_mj - 1), abs(read_mj / true_mj - 1)


if __name__ == "__main__":
    sys.exit(main())
