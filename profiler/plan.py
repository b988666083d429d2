"""From a sweep spec to the list of scenarios and the runs that measure them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from costprof.core.errors import InputError
from costprof.core.expert import ExpertClass, Kernel, LayerClass, Op
from costprof.core.hashing import content_id
from costprof.profiler.counts import layer_counts
from costprof.profiler.kernels import default_kernel_name, resolve_kernel
from costprof.profiler.scenario import DeviceName, Scenario
from costprof.profiler.spec import ExpertSpec, LayerSpec, MeasureSpec, SweepSpec, TimingSpec
from costprof.profiler.tiles import sample_tiles

# Rough rates, used to estimate how long a plan takes and for nothing else.
_ASSUMED_FLOPS = {"cpu": 5e10, "cuda": 1e14}
_ASSUMED_BYTES_PER_S = {"cpu": 5e9, "cuda": 1e12}
_ASSUMED_CALL_S = 2e-5
_SETUP_S = 0.3
_COMPILE_S = 2.0
_RUN_OVERHEAD_S = 6.0


@dataclass(frozen=True)
class Run:
    """Scenarios of one expert class, measured in turn by one process."""

    scenarios: tuple[Scenario, ...]

    @cached_property
    def run_id(self) -> str:
        """Hash of the scenarios: the same plan always has the same runs."""
        return "r" + content_id([s.scenario_id for s in self.scenarios], length=12)


@dataclass(frozen=True)
class Plan:
    """All that a sweep will do, fixed before it starts.

    A plan with a `search` grows: whoever chooses its next runs adds them (`with_scenarios`), and
    what stays the same, and names the plan, is how they are chosen.
    """

    name: str
    device: DeviceName
    runs: tuple[Run, ...]
    moes: tuple[dict[str, Any], ...]
    timing: TimingSpec
    search: dict[str, Any] | None = None

    @property
    def scenarios(self) -> list[Scenario]:
        """Every scenario, in the order it is measured."""
        return [scenario for run in self.runs for scenario in run.scenarios]

    @cached_property
    def plan_id(self) -> str:
        """Hash of scenarios and timing: `--resume` only goes on with an equal plan."""
        what: dict[str, Any] = {"timing": self.timing.model_dump(), "moes": list(self.moes)}
        if self.search is None:
            what["runs"] = [[s.scenario_id for s in run.scenarios] for run in self.runs]
        else:
            what["search"] = self.search
        return content_id(what)

    def with_scenarios(self, scenarios: list[Scenario], *, isolate: bool = False) -> Plan:
        """Return the plan with further runs, of the `scenarios` it does not hold yet."""
        known = {scenario.scenario_id for scenario in self.scenarios}
        new = [scenario for scenario in scenarios if scenario.scenario_id not in known]
        more = _runs(new, self.timing, isolate)
        return dataclasses.replace(self, runs=(*self.runs, *more))

    def estimated_s(self) -> float:
        """Rough time of the whole sweep, in seconds, without re-measuring."""
        return sum(
            _RUN_OVERHEAD_S
            + sum(estimate_s(s, self.timing) for s in run.scenarios)
            + _COMPILE_S * len({content_id(s.kernel.to_dict()) for s in run.scenarios if _tiled(s)})
            for run in self.runs
        )


def make_plan(spec: SweepSpec, device: DeviceName, *, isolate: bool = False) -> Plan:
    """Expand `spec` into scenarios without duplicates, grouped into runs.

    A run holds scenarios of one expert class and takes about `timing.run_seconds` at most
    (one scenario with `isolate`).

    Raises:
        InputError: a kernel, distribution or expert in the spec cannot be used.
    """
    scenarios: dict[str, Scenario] = {}
    for scenario in itertools.chain(_measured(spec, device), _layers(spec, device)):
        scenarios.setdefault(scenario.scenario_id, scenario)
    return Plan(
        name=spec.name,
        device=device,
        runs=tuple(_runs(list(scenarios.values()), spec.timing, isolate)),
        moes=tuple(_moes(spec, list(scenarios.values()))),
        timing=spec.timing,
    )


def estimate_s(scenario: Scenario, timing: TimingSpec) -> float:
    """Rough seconds to measure `scenario` once, set-up included."""
    work = scenario.work()
    call_s = max(
        work.flops / _ASSUMED_FLOPS[scenario.device],
        work.bytes / _ASSUMED_BYTES_PER_S[scenario.device],
        _ASSUMED_CALL_S,
    )
    wanted = timing.target_ms / 1e3
    if scenario.device == "cpu":
        wanted = min(timing.max_repetitions * call_s, wanted)
    measured = max(timing.min_repetitions * call_s, wanted)
    return _SETUP_S + timing.warmup * call_s + timing.passes * measured


def _tiled(scenario: Scenario) -> bool:
    """Whether its kernel is compiled for a tile config of its own."""
    return scenario.device == "cuda" and bool(scenario.kernel.config)


def _measured(spec: SweepSpec, device: DeviceName) -> list[Scenario]:
    found = []
    for entry in spec.measure:
        expert = spec.experts[entry.expert].to_class()
        for op in entry.ops:
            name = entry.kernels.get(op) or default_kernel_name(expert, op, device)
            for cache, kernel in itertools.product(entry.cache, _kernels(name, expert, entry)):
                found += [
                    Scenario(
                        expert=expert,
                        op=op,
                        tokens=tokens,
                        cache_state=cache,
                        kernel=kernel,
                        device=device,
                    )
                    for tokens in _token_counts(op, entry.tokens)
                ]
    return found


def _kernels(name: str, expert: ExpertClass, entry: MeasureSpec | LayerSpec) -> list[Kernel]:
    """The kernel under each of its tile configs."""
    kernel = resolve_kernel(name)
    configs = [*entry.configs, *sample_tiles(name, expert, entry.tiles)]
    return [dataclasses.replace(kernel, config=dict(config)) for config in configs]


def _token_counts(op: Op, tokens: list[int]) -> list[int]:
    # Packing works on weights alone: one scenario serves all token counts.
    return [1] if op in ("pack", "unpack") else tokens


def _layers(spec: SweepSpec, device: DeviceName) -> list[Scenario]:
    found = []
    for entry in spec.layer:
        expert = spec.experts[entry.expert].to_class()
        name = entry.kernel or default_kernel_name(expert, "layer", device)
        for kernel, cache in itertools.product(_kernels(name, expert, entry), entry.cache):
            found += [
                Scenario(
                    expert=expert,
                    op="layer",
                    tokens=tokens,
                    cache_state=cache,
                    kernel=kernel,
                    device=device,
                    layer=layer,
                )
                for tokens, layer in _layer_classes(entry)
            ]
    return found


def _layer_classes(entry: LayerSpec) -> list[tuple[int, LayerClass]]:
    """Each layer of `entry` with the tokens it serves, a stated vector's rounded up."""
    dealt = [
        (tokens, distribution, layer_counts(entry.experts, entry.top_k, tokens, distribution))
        for distribution, tokens in itertools.product(entry.distributions, entry.tokens)
    ]
    dealt += [
        (math.ceil(sum(counts) / entry.top_k), "stated", tuple(counts)) for counts in entry.counts
    ]
    return [
        (
            tokens,
            LayerClass(
                experts=entry.experts,
                top_k=entry.top_k,
                counts=counts,
                distribution=distribution,
                ep_size=entry.ep_size,
                tp_size=entry.tp_size,
            ),
        )
        for tokens, distribution, counts in dealt
    ]


def _runs(scenarios: list[Scenario], timing: TimingSpec, isolate: bool) -> list[Run]:
    if isolate:
        return [Run((scenario,)) for scenario in scenarios]
    runs: list[Run] = []
    for _, group in itertools.groupby(scenarios, key=lambda s: (s.expert, s.op == "layer")):
        current: list[Scenario] = []
        seconds = 0.0
        for scenario in group:
            cost = estimate_s(scenario, timing)
            if current and seconds + cost > timing.run_seconds:
                runs.append(Run(tuple(current)))
                current, seconds = [], 0.0
            current.append(scenario)
            seconds += cost
        runs.append(Run(tuple(current)))
    return runs


def _moes(spec: SweepSpec, scenarios: list[Scenario]) -> list[dict[str, Any]]:
    """Describe each MoE by the class of every expert: the cold, whole-expert one it measured."""
    result = []
    for moe in spec.moe:
        classes: list[str] = []
        for run in moe.experts:
            classes += [_class_of(run.expert, spec.experts[run.expert], scenarios)] * run.count
        result.append({"name": moe.name, "top_k": moe.top_k, "class_of_expert": classes})
    return result


def _class_of(name: str, expert: ExpertSpec, scenarios: list[Scenario]) -> str:
    wanted = expert.to_class()
    candidates = [s for s in scenarios if s.op == "expert" and s.expert == wanted]
    # In decode an expert's weights are cold: prefer that price where both were measured.
    candidates.sort(key=lambda s: s.cache_state != "cold")
    if not candidates:
        raise InputError(
            f"the MoE uses expert {name!r}, whose op 'expert' is not measured",
            "it could not be priced",
            "add a 'measure' entry with ops = ['expert'] for it",
        )
    return candidates[0].class_id
