"""What pricing a layer takes on one CPU thread, beside the plain gather and sum of the same rows.

    python benchmarks/lookup.py [--rounds 201] [--json]

The floor gathers E rows of two float64 by an index worked out beforehand and adds them up: no rows
from counts, no range, no base, no check. Both run in turn, so that a slow moment of the machine
hits both; the ratio is taken pair by pair. Prices are made up, the code that looks them up is not.
Aim: `layer_cost` of 128 experts in at most 20 us.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import timeit
from collections.abc import Callable
from typing import Any

import torch

from costprof.core.device import detect_device
from costprof.core.expert import ExpertClass, Kernel
from costprof.costmodel.manifest import Composition, Manifest, MoeSpec
from costprof.costmodel.rows import TableRow, rows_table
from costprof.costmodel.table import CostTable

EXPERTS = (8, 64, 128, 256)
CLASSES = 4
LARGEST = 4096
AIM_EXPERTS, AIM_US = 128, 20.0
CALLS = 50
"""Calls timed together: few, so that most rounds run within one time slice."""


def made_up_table(n_experts: int) -> CostTable:
    """Return a table of `n_experts` of `CLASSES` classes, priced up to `LARGEST` tokens."""
    rows = [
        TableRow(
            expert=ExpertClass(d_model=512, d_ff=256 * (number + 1), dtype="float32"),
            kernel=Kernel(name="made:up", framework="torch"),
            tokens=2**exponent,
            latency_us=(latency_us, latency_us, latency_us),
            energy_mj=(0.02 * latency_us,) * 3,
        )
        for number in range(CLASSES)
        for exponent in range(LARGEST.bit_length())
        for latency_us in [20.0 + (number + 1) * 2.0**exponent]
    ]
    names = list(dict.fromkeys(row.class_id for row in rows))
    classes = tuple(names[expert % CLASSES] for expert in range(n_experts))
    manifest = Manifest(
        device=detect_device("cpu"),
        moes=(MoeSpec(name="made up", top_k=2, class_of_expert=classes),),
        compositions={name: Composition(base_us=5.0, latency_scale=0.9) for name in names},
    )
    return CostTable(rows_table(rows), manifest)


def us_per_call(call: Callable[[], object]) -> float:
    return timeit.timeit(call, number=CALLS) / CALLS * 1e6


def measure(n_experts: int, rounds: int) -> dict[str, Any]:
    table = made_up_table(n_experts)
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 64, (n_experts,), generator=generator)
    narrow, beyond = counts.int(), counts.clone()
    beyond[0] = 2 * LARGEST
    values = torch.rand(CLASSES * (LARGEST + 1), 2, dtype=torch.float64, generator=generator)
    index = counts * CLASSES + torch.arange(n_experts) % CLASSES
    calls: dict[str, Callable[[], object]] = {
        "floor": lambda: values.index_select(0, index).sum(0),
        "layer_cost": lambda: table.layer_cost(counts),
        "int32": lambda: table.layer_cost(narrow),
        "beyond": lambda: table.layer_cost(beyond),
    }
    for call in calls.values():
        for _ in range(10):
            us_per_call(call)
    taken = [{name: us_per_call(call) for name, call in calls.items()} for _ in range(rounds)]
    ratios = [each["layer_cost"] / each["floor"] for each in taken]
    return {
        "experts": n_experts,
        **{f"{name}_us": spread([each[name] for each in taken]) for name in calls},
        "ratio_to_floor": spread(ratios),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Return the median and the tenths on both sides of it."""
    tenths = statistics.quantiles(values, n=10)
    return {"p10": tenths[0], "median": statistics.median(values), "p90": tenths[-1]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=201)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = [measure(n_experts, options.rounds) for n_experts in EXPERTS]
    if options.json:
        print(json.dumps({"results": found, "aim_us": AIM_US, "rounds": options.rounds}, indent=1))
    else:
        for each in found:
            print(f"{each['experts']} experts")
            for name, values in each.items():
                if name != "experts":
                    print(
                        f"  {name:15} {values['median']:7.2f}   "
                        f"({values['p10']:.2f} … {values['p90']:.2f})"
                    )
    reached = next(each for each in found if each["experts"] == AIM_EXPERTS)
    return 0 if reached["layer_cost_us"]["median"] <= AIM_US else 1


if __name__ == "__main__":
    sys.exit(main())
