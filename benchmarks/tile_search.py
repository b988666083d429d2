"""How good is the tile config a search finds, and how much does it measure? 20 seeds of each.

    python benchmarks/tile_space.py --out out/tiles        # every config, really measured: minutes
    python benchmarks/tile_search.py --replay out/tiles    # searches on it, and on the simulator

Random search stands beside it with the same number of measurements in the same run, drawn from the
same configs. Regret is the latency of the config a search recommends over that of the best one,
minus 1, both by latencies the search did not see: on recordings, of the lower quartile over the odd
rounds (other processes only ever add time), while searches see even rounds; on the simulator, of
its noise-free latency. The least of many quartiles is too small by luck, so regret on recordings
is rather overstated; how far a recording can tell, its line `all measured` says: the regret of
whoever measured every config in all even rounds and took the fastest.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from costprof.costmodel.acquisition import Measured, TileSpace, choose
from costprof.costmodel.tile_features import TileProblem

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
import simulated_tiles as simulator

AIM_REGRET = 0.02
SHARE = 0.05
PASSES_ATTEMPTS = 3

Reading = Callable[[int, int, random.Random], tuple[float | None, float]]


@dataclass(frozen=True)
class World:
    """A space whose every config is known. `true_us` [token counts][configs]; inf: it fails.

    `read(tokens, config, draw)` is one measurement: µs (None: failed) and variance of its log.
    `exhaustive` is the config that measuring all of them would take.
    """

    name: str
    kind: str
    held_out: bool
    space: TileSpace
    true_us: np.ndarray
    read: Reading
    exhaustive: int | None = None


def recorded(path: Path) -> World:
    """The world of one file of tile_space.py."""
    values = json.loads(path.read_text(encoding="utf-8"))
    problem = values["problem"]
    seen = np.array(values["latency_us"])  # [configs, rounds]
    spread = np.array(values["robust_cv"])
    calls = np.array(values["calls"])
    wide = 2 * problem["d_ff"]
    product = TileProblem(
        tokens=problem["tokens"],
        rows=(problem["tokens"],),
        columns=wide if problem["op"] == "fc1" else problem["d_ff"],
        depth=problem["d_model"],
        units=1,
        value_bytes=2 if problem["dtype"] == "bfloat16" else 4,
    )
    choices = {name: sorted({c[name] for c in values["configs"]}) for name in values["configs"][0]}

    def read(tokens: int, config: int, draw: random.Random) -> tuple[float | None, float]:
        """Two passes, repeated twice at most while they disagree: as a sweep measures."""
        best: tuple[float, float] | None = None
        rounds = draw.sample(range(0, seen.shape[1], 2), 2 * PASSES_ATTEMPTS)
        for pair in zip(rounds[::2], rounds[1::2], strict=True):
            passes = seen[config, list(pair)]
            value = float(passes.mean())
            apart = float(np.ptp(passes)) / value
            error = float(1.25 / 1.35 * np.median(spread[config, list(pair)]))
            error /= float(calls[config, list(pair)].sum()) ** 0.5
            noisy = 0.10 if apart > 0.05 else 0.0
            variance = 0.005**2 + error**2 + (apart / 2) ** 2 + noisy**2
            if best is None or variance < best[1]:
                best = value, variance
            if not noisy:
                break
        assert best is not None
        return best

    return World(
        name=problem["name"],
        kind="measured",
        held_out=problem["held_out"],
        space=TileSpace(choices, values["configs"], (product,)),
        true_us=np.quantile(seen[:, 1::2], 0.25, axis=1)[None, :],
        exhaustive=int(np.quantile(seen[:, ::2], 0.25, axis=1).argmin()),
        read=read,
    )


def simulated(layer: simulator.Layer, tokens: tuple[int, ...], held_out: bool) -> World:
    """The simulated world of one layer at all its token counts, searched together."""
    gpu = simulator.SimulatedGpu()
    problems = tuple(
        TileProblem(
            tokens=count,
            rows=tuple(rows for rows in layer.counts(count) if rows),
            columns=2 * layer.d_ff,
            depth=layer.d_model,
            units=gpu.units,
            value_bytes=2,
        )
        for count in tokens
    )
    true_us = np.array(
        [
            [
                simulator.simulated_latency_us(gpu, layer, count, config) or math.inf
                for config in simulator.CONFIGS
            ]
            for count in tokens
        ]
    )

    def read(at: int, config: int, draw: random.Random) -> tuple[float | None, float]:
        if not math.isfinite(true_us[at, config]):
            return None, 0.0
        value, std = simulator.simulated_measurement_us(gpu, float(true_us[at, config]), draw)
        return value, std**2

    space = TileSpace(simulator.CHOICES, simulator.CONFIGS, problems)
    return World(layer.name, "simulated", held_out, space, true_us, read)


def search(world: World, seed: int, batch: int) -> list[dict[str, Any]]:
    """One search; returns one result a token count."""
    budget = math.floor(SHARE * len(world.space.configs))
    draw = random.Random(f"{seed} {world.name}")
    measured: list[Measured] = []
    while True:
        choice = choose(world.space, measured, budget=budget, batch=batch, seed=seed)
        if not choice.next:
            break
        for tokens, config in choice.next:
            value, variance = world.read(tokens, config, draw)
            measured.append(Measured(tokens, config, value, variance))
    results = []
    for tokens, problem in enumerate(world.space.problems):
        used = [m for m in measured if m.tokens == tokens]
        best = choice.best[tokens]
        results.append(
            {
                "tokens": problem.tokens,
                "measured": len(used),
                "regret": _regret(world, tokens, best),
                "random_regret": _regret(world, tokens, _random(world, tokens, len(used), draw)),
                "stopped": choice.stopped[tokens],
            }
        )
    return results


def _random(world: World, tokens: int, count: int, draw: random.Random) -> int | None:
    """The config of least reading among `count` drawn ones."""
    drawn = draw.sample(range(len(world.space.configs)), count)
    readings = [(world.read(tokens, config, draw)[0], config) for config in drawn]
    ran = [(value, config) for value, config in readings if value is not None]
    return min(ran)[1] if ran else None


def _regret(world: World, tokens: int, config: int | None) -> float:
    true_us = world.true_us[tokens]
    return math.inf if config is None else float(true_us[config] / true_us.min() - 1)


def summary(world: World, seeds: int, batch: int) -> list[dict[str, Any]]:
    """Figures over all seeds, one row a token count."""
    runs = [search(world, seed, batch) for seed in range(seeds)]
    rows = []
    for number, problem in enumerate(world.space.problems):
        each = [run[number] for run in runs]
        row: dict[str, Any] = {
            "world": world.name,
            "kind": world.kind,
            "held_out": world.held_out,
            "tokens": problem.tokens,
            "space": len(world.space.configs),
            "measured_median": statistics.median(r["measured"] for r in each),
            "measured_max": max(r["measured"] for r in each),
            "within_2_percent_of_best": float(
                (world.true_us[number] <= (1 + AIM_REGRET) * world.true_us[number].min()).sum()
            ),
            "stopped": {
                str(why): sum(r["stopped"] == why for r in each)
                for why in sorted({r["stopped"] for r in each}, key=str)
            },
        }
        if world.exhaustive is not None:
            row["all_measured_regret"] = _regret(world, number, world.exhaustive)
        for who in ("regret", "random_regret"):
            values = [r[who] for r in each]
            row[f"{who}_median"] = statistics.median(values)
            row[f"{who}_max"] = max(values)
            row[f"{who}_within_aim"] = sum(v <= AIM_REGRET for v in values) / len(values)
        rows.append(row)
    return rows


def show(row: dict[str, Any]) -> None:
    where = "held out" if row["held_out"] else "tuned on"
    print(
        f"{row['kind']:9} {row['world']:16} T={row['tokens']:<5} {where}  "
        f"{row['measured_median']:5.0f} of {row['space']} "
        f"({row['measured_max'] / row['space']:.1%} at most)   "
        f"regret {row['regret_median']:6.2%} median {row['regret_max']:6.2%} max, "
        f"{row['regret_within_aim']:4.0%} of seeds within 2 %   "
        f"random {row['random_regret_median']:6.2%} median {row['random_regret_max']:6.2%} max, "
        f"{row['random_regret_within_aim']:4.0%}",
        flush=True,
    )
    if "all_measured_regret" in row:
        print(f"{'':9} {'':16} all measured: regret {row['all_measured_regret']:.2%}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replay", type=Path, help="folder that tile_space.py wrote")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4, help="configs a token count and step")
    parser.add_argument("--no-simulator", action="store_true")
    parser.add_argument("--tuned-only", action="store_true", help="leave the held-out ones out")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    worlds: list[Callable[[], World]] = []
    if options.replay:
        paths = sorted(options.replay.glob("*.json"))
        worlds += [lambda path=path: recorded(path) for path in paths]
    if not options.no_simulator:
        for layers, held_out in ((simulator.DEVELOPMENT, False), (simulator.HELD_OUT, True)):
            if held_out and options.tuned_only:
                continue
            worlds += [
                lambda layer=layer, tokens=tokens, held_out=held_out: simulated(
                    layer, tokens, held_out
                )
                for layer, tokens in layers
            ]
    rows: list[dict[str, Any]] = []
    for make in worlds:
        world = make()
        if options.tuned_only and world.held_out:
            continue
        for row in summary(world, options.seeds, options.batch):
            rows.append(row)
            show(row)
    for kind in sorted({row["kind"] for row in rows}):
        for held_out in (False, True):
            some = [r for r in rows if r["kind"] == kind and r["held_out"] is held_out]
            if some:
                ours = statistics.mean(r["regret_within_aim"] for r in some)
                by_chance = statistics.mean(r["random_regret_within_aim"] for r in some)
                print(
                    f"{kind}, {'held out' if held_out else 'tuned on'}: {ours:.1%} of searches "
                    f"within 2 % of the best (random search: {by_chance:.1%})"
                )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
