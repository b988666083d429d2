"""The chooser of tile configs: what it encodes, proposes, believes and when it stops."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import simulated_tiles as simulator

from costprof.costmodel.acquisition import (
    Choice,
    Measured,
    TileSpace,
    choose,
    expected_improvement,
    joint_improvement,
    start_set,
)
from costprof.costmodel.tile_features import TileProblem, encode, physics_estimate, tile_features
from costprof.costmodel.tile_process import TileProcess

CHOICES = {"BLOCK_M": (16, 32, 64, 128), "BLOCK_N": (32, 64, 128, 256), "BLOCK_K": (32, 64, 128)}


def product(choices: dict[str, tuple[int, ...]]) -> list[dict[str, int]]:
    return [dict(zip(choices, v, strict=True)) for v in itertools.product(*choices.values())]


def problem(tokens: int) -> TileProblem:
    return TileProblem(
        tokens=tokens, rows=(tokens,), columns=1024, depth=512, units=8, value_bytes=2
    )


def space(*tokens: int) -> TileSpace:
    return TileSpace(CHOICES, product(CHOICES), tuple(problem(count) for count in tokens))


def bowl_us(config: dict[str, int], tokens: int) -> float:
    """Smooth, with its bottom at 64, 128, 64 for 64 tokens, and a wider BLOCK_M for more."""
    off = (
        math.log2(config["BLOCK_M"] / tokens),
        math.log2(config["BLOCK_N"] / 128),
        math.log2(config["BLOCK_K"] / 64),
    )
    return 100.0 * tokens * math.exp(0.2 * off[0] ** 2 + 0.1 * off[1] ** 2 + 0.15 * off[2] ** 2)


def run(
    where: TileSpace, budget: int, noise: float, seed: int = 0
) -> tuple[Choice, list[Measured]]:
    draw = random.Random(seed)
    measured: list[Measured] = []
    while True:
        choice = choose(where, measured, budget=budget, batch=2, seed=seed)
        if not choice.next:
            return choice, measured
        for tokens, config in choice.next:
            true_us = bowl_us(dict(where.configs[config]), where.problems[tokens].tokens)
            read = true_us * math.exp(draw.gauss(0.0, noise))
            measured.append(Measured(tokens, config, read, noise**2))


def test_parameters_become_numbers_by_what_they_are() -> None:
    choices = {"BLOCK": (16, 32, 128), "flag": (0, 1), "ORDER": (0, 1, 2), "stages": (2, 3, 5)}
    configs = [
        {"BLOCK": 16, "flag": 0, "ORDER": 0, "stages": 2},
        {"BLOCK": 32, "flag": 1, "ORDER": 2, "stages": 3},
    ]
    assert encode(choices, configs).tolist() == pytest.approx(
        np.array([[0, 0, 1, 0, 0, 0], [1 / 3, 1, 0, 0, 1, 1 / 3]])
    )


def test_tile_arithmetic_follows_from_shapes() -> None:
    config = {"BLOCK_M": 64, "BLOCK_N": 256, "BLOCK_K": 64, "num_stages": 3}
    features = tile_features(problem(100), [config])
    # 100 rows fill two tiles of 64; four columns of tiles; 8 tiles on 8 units are one wave.
    assert features[0].tolist() == pytest.approx(
        [
            math.log2(128 / 100),
            0.0,
            math.log2(3 * (64 + 256) * 64 * 2),
            math.log2(2 * 64 * 256 * 64 / ((64 + 256) * 64 * 2)),
        ]
    )
    assert tile_features(problem(100), [{"x": 1}]).shape == (1, 0)
    assert physics_estimate(problem(100), [{"x": 1}, {"x": 2}]).tolist() == [0.0, 0.0]


def test_improvements_agree_with_drawing() -> None:
    draw = np.random.default_rng(0)
    mean, std = np.array([0.1, -0.05, 0.3]), np.array([0.2, 0.02, 0.5])
    drawn = draw.normal(mean, std, size=(400_000, 3))
    each = np.maximum(0.05 - drawn, 0.0).mean(axis=0)
    assert expected_improvement(mean, std, 0.05) == pytest.approx(each, rel=0.02)
    together = np.maximum(0.05 - drawn.min(axis=1), 0.0).mean()
    assert joint_improvement(mean, std, 0.05) == pytest.approx(together, rel=0.02)
    assert joint_improvement(mean[:0], std[:0], 0.05) == 0.0


def test_the_gradient_of_the_process_is_exact() -> None:
    draw = np.random.default_rng(0)
    x, physics = draw.random((25, 3)), draw.normal(size=25)
    group = draw.integers(0, 2, 25).astype(float)
    process = TileProcess.fit(x, physics, group, np.sin(3 * x[:, 0]), np.full(25, 1e-4))
    spread = (x[:, None] - x[None]) ** 2
    at = process.parameters + 0.1
    _, gradient = process._objective(at, spread)
    for number in range(len(at)):
        step = np.zeros(len(at))
        step[number] = 1e-5
        high, low = (process._objective(at + sign * step, spread)[0] for sign in (1, -1))
        assert (high - low) / 2e-5 == pytest.approx(gradient[number], rel=1e-4, abs=1e-4)


def test_the_start_repeats_nothing_and_depends_on_the_seed() -> None:
    where = space(16, 64)
    begun = start_set(where, 8, seed=1)
    assert len(set(begun)) == len(begun) == 16
    assert begun == start_set(where, 8, seed=1)
    assert begun != start_set(where, 8, seed=2)
    # The two token counts do not try the same configs.
    assert len({config for _, config in begun}) > 12


def test_the_same_measurements_lead_to_the_same_choice() -> None:
    where = space(16, 64)
    _, measured = run(where, 8, 0.001)
    one, two = (choose(where, measured, budget=14, batch=3) for _ in range(2))
    assert one == two
    assert one.next
    assert not {(m.tokens, m.config) for m in measured} & set(one.next)


def test_it_finds_the_bottom_of_a_bowl() -> None:
    where = space(16, 64)
    choice, measured = run(where, 16, 0.01)
    assert len(measured) <= 2 * 16
    for tokens, best in enumerate(choice.best):
        count = where.problems[tokens].tokens
        least = min(bowl_us(dict(config), count) for config in where.configs)
        assert best is not None
        assert bowl_us(dict(where.configs[best]), count) <= 1.02 * least


def test_it_stops_where_nothing_is_to_be_gained() -> None:
    """With noise of 20 % there is no telling the last per cents: no reason to use the budget up."""
    choice, measured = run(space(64), 48, 0.2)
    assert choice.stopped == ("gain below noise",)
    assert len(measured) < 48
    assert choice.gain[0] is not None
    assert choice.gain[0] < 0.1 * 0.2


def test_a_budget_is_kept_and_a_small_space_used_up() -> None:
    tiny = TileSpace({"BLOCK": (1, 2, 4)}, product({"BLOCK": (1, 2, 4)}), (problem(4),))
    measured = [Measured(0, index, 10.0 + index, 1e-4) for index in range(3)]
    assert choose(tiny, measured, budget=9).stopped == ("all measured",)
    choice, measured = run(space(16, 64), 9, 1e-6)
    assert max(sum(m.tokens == t for m in measured) for t in (0, 1)) <= 9
    assert set(choice.stopped) <= {"budget used", "gain below noise"}


def test_failed_configs_count_and_their_likes_are_avoided() -> None:
    """A third of the simulated configs needs more shared memory than there is."""
    gpu, (layer, _) = simulator.SimulatedGpu(), simulator.DEVELOPMENT[0]
    shape = TileProblem(
        tokens=512,
        rows=tuple(layer.counts(512)),
        columns=2 * layer.d_ff,
        depth=layer.d_model,
        units=gpu.units,
        value_bytes=2,
    )
    where = TileSpace(simulator.CHOICES, simulator.CONFIGS, (shape,))
    draw = random.Random(0)
    measured: list[Measured] = []
    while (choice := choose(where, measured, budget=48, batch=4)).next:
        for tokens, config in choice.next:
            us = simulator.simulated_latency_us(gpu, layer, 512, simulator.CONFIGS[config])
            if us is not None:
                us, _ = simulator.simulated_measurement_us(gpu, us, draw)
            measured.append(Measured(tokens, config, us))
    assert len(measured) <= 48
    started, chosen = measured[:8], measured[8:]
    assert any(m.latency_us is None for m in started)
    assert sum(m.latency_us is None for m in chosen) <= len(chosen) / 6
    assert choice.best[0] is not None
    assert simulator.simulated_latency_us(gpu, layer, 512, simulator.CONFIGS[choice.best[0]])


def test_a_space_in_which_all_fails_ends() -> None:
    where = space(64)
    measured: list[Measured] = []
    while (choice := choose(where, measured, budget=12)).next:
        measured += [Measured(tokens, config, None) for tokens, config in choice.next]
    assert len(measured) == 12
    assert choice.best == (None,)
    assert choice.stopped == ("budget used",)


def test_one_token_count_informs_the_other() -> None:
    """All configs measured at 64 tokens say which are good at 32, where few were."""
    where = space(32, 64)
    few = [Measured(0, c, 0.6 * bowl_us(dict(where.configs[c]), 64)) for c in (0, 13, 26, 39)]
    many = [Measured(1, c, bowl_us(dict(where.configs[c]), 64)) for c in range(48)]
    true = np.log([bowl_us(dict(config), 64) for config in where.configs])
    errors = []
    for measured in (few, few + many):
        group = np.array([float(m.tokens) for m in measured])
        y = np.log([m.latency_us for m in measured if m.latency_us])
        for tokens in np.unique(group):
            y[group == tokens] -= y[group == tokens].min()
        process = TileProcess.fit(
            np.stack([where.x[m.tokens, m.config] for m in measured]),
            np.array([where.physics[m.tokens, m.config] for m in measured]),
            group,
            y,
            np.full(len(measured), 1e-4),
        )
        mean, _ = process.predict(where.x[0], where.physics[0], np.zeros(48))
        errors.append(float(np.std(mean - true)))
    assert errors[1] < 0.5 * errors[0]


def test_the_simulator_is_a_space_of_1920_configs_of_which_some_fail() -> None:
    gpu, (layer, _) = simulator.SimulatedGpu(), simulator.DEVELOPMENT[0]
    all_us = [simulator.simulated_latency_us(gpu, layer, 512, c) for c in simulator.CONFIGS]
    ran = sorted(us for us in all_us if us is not None)
    assert len(all_us) == 1920
    assert 0 < len(all_us) - len(ran) < 960
    assert ran[-1] > 3 * ran[0]  # there is something to lose
    assert sum(us <= 1.02 * ran[0] for us in ran) < 20  # and the best are few
    again = [simulator.simulated_latency_us(gpu, layer, 512, c) for c in simulator.CONFIGS[:50]]
    assert again == all_us[:50]
