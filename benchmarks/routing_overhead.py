"""What a routing decision takes: `route` against softmax and top-k, calls taking turns, one thread.

python benchmarks/routing_overhead.py       # E = 128, k = 8; aim: 40 us more at most, 2.5 x
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable

import torch

from costprof.costmodel.compatibility import TableDriftWarning
from costprof.costmodel.table import CostTable
from costprof.routing import POLICIES, Gate, Marginal, TopK, route
from costprof.routing.contract import Policy


def main() -> None:
    """Time and print."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", TableDriftWarning)
    table, experts, top_k = CostTable.shipped("Qwen3-30B-A3B"), 128, 8
    gate = Gate(top_k=top_k)
    generator = torch.Generator().manual_seed(0)
    policies: dict[str, Policy] = {
        "topk": TopK(),
        "marginal": Marginal(lam=0.05),
        "oea": POLICIES["oea"](k0=4),
        "budget": POLICIES["budget"](experts=48),
    }
    print(f"E={experts}, k={top_k}, one CPU thread, measured; us: median (least) of rounds")
    with torch.inference_mode():
        for tokens in (1, 8, 16, 32, 64):
            logits = torch.randn(tokens, experts, generator=generator) * 1.5

            def plain(logits: torch.Tensor = logits) -> None:
                weights, _ = torch.softmax(logits, -1).topk(top_k, -1)
                weights / weights.sum(-1, keepdim=True)

            calls: dict[str, Callable[[], object]] = {"softmax + top-k": plain}
            for name, policy in policies.items():
                calls[name] = lambda policy=policy, logits=logits: route(
                    logits, table=table, gate=gate, policy=policy
                )
            times = timed(calls)
            floor = statistics.median(times["softmax + top-k"])
            for name, each in times.items():
                middle = statistics.median(each)
                print(
                    f"T={tokens:3} {name:16} {middle:7.1f} ({min(each):6.1f})  "
                    f"+{middle - floor:6.1f} us, {middle / floor:5.2f} x"
                )


def timed(
    calls: dict[str, Callable[[], object]], rounds: int = 25, per_round: int = 40
) -> dict[str, list[float]]:
    """Return µs a call, by round, the calls taking turns."""
    for call in calls.values():
        for _ in range(per_round):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            for _ in range(per_round):
                call()
            times[name].append((time.perf_counter() - began) / per_round * 1e6)
    return times


if __name__ == "__main__":
    main()
