"""Every step of a day with a GPU, most wanted first."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from costprof.core.device import DeviceFingerprint
from costprof.core.files import write_json
from costprof.profiler.plan import make_plan
from costprof.profiler.scenario import DeviceName
from gpu_steps import measures, policies
from gpu_steps.children import script
from gpu_steps.energy import SCENARIO_S, Wanted, measure_energy
from gpu_steps.running import Step
from gpu_steps.specs import EXPERT_PARALLEL, model_spec

MODELS = ("Qwen3-30B-A3B", "OLMoE-1B-7B", "Mixtral-8x7B", "gpt-oss-20b", "DeepSeek-V3")
CPU_MODELS = ("cpu-smoke",)
_ON_A_CPU = "it needs a GPU"


def _versus_torch(tokens: int) -> tuple[Wanted, ...]:
    ours = Wanted("layer", tokens, "balanced")
    return ours, Wanted("layer", tokens, "balanced", by_torch=True)


Compared = tuple[str, tuple[Wanted, ...], tuple[str, ...]]
"""A name, the scenarios that are compared in joules, and the models they are measured on."""

ENERGY: tuple[Compared, ...] = (
    ("layer-16", _versus_torch(16), MODELS),
    ("expert", (Wanted("expert", 1), Wanted("expert", 16)), MODELS),
)
MORE_ENERGY: tuple[Compared, ...] = (
    ("layer-1", _versus_torch(1), MODELS),
    # With all experts active in layer-16: the joules of one more active expert.
    ("active", (Wanted("layer", 16, "few"), Wanted("layer", 16, "more")), MODELS[:3]),
    ("layer-64", _versus_torch(64), MODELS),
)


def model_energy(
    model: str,
    device_name: DeviceName,
    device: DeviceFingerprint,
    folder: Path,
    wanted: tuple[Wanted, ...],
    result: Path,
) -> None:
    """Measure the energy of a few scenarios of a model's sweep, and fit its table with it."""
    plan = make_plan(model_spec(model), device_name)
    measured = measure_energy(folder, plan, device, [each.find(plan) for each in wanted])
    measures.fit(folder)
    write_json(result, measured)


@dataclass(frozen=True)
class Day:
    """The steps on one device, "cuda" or "cpu"; without a fingerprint they can be shown only."""

    device_name: DeviceName
    device: DeviceFingerprint | None
    out: Path

    @property
    def on_gpu(self) -> bool:
        return self.device_name == "cuda"

    @property
    def models(self) -> tuple[str, ...]:
        return MODELS if self.on_gpu else CPU_MODELS

    @property
    def gpu_only(self) -> str | None:
        """Why steps that need a GPU are skipped."""
        return None if self.on_gpu else _ON_A_CPU

    def steps(self) -> list[Step]:
        """Return all of them."""
        first, *others = self.models
        rehearse = () if self.on_gpu else ("--rehearse",)
        return [
            self._tests(),
            self._script("ceilings", "ceilings.py", 30, "--device", self.device_name),
            *itertools.chain.from_iterable(self._sweep(model) for model in self.models),
            *self._energy(ENERGY),
            *self._routing(first),
            *(self._policies_energy(first, tokens) for tokens in (16, 1, 64, 4, 256)),
            self._counters(first),
            self._script("launches", "schedulers.py", 120, *rehearse),
            self._script("heat", "heat.py", 250, skip=self.gpu_only),
            *(self._vllm(model) for model in self.models),
            self._script("backends", "backends.py", 200, "--device", self.device_name),
            self._tile_search(first),
            *itertools.chain.from_iterable(self._routing(model) for model in others),
            *self._energy(MORE_ENERGY),
        ]

    def _tests(self) -> Step:
        run, result = measures.gpu_tests, self.out / "tests.txt"
        return _step("GPU tests", result, 180, run, result, skip=self.gpu_only)

    def _script(
        self, name: str, file: str, expected_s: float, *options: str, skip: str | None = None
    ) -> Step:
        """Another benchmark, which writes its own result."""
        result = self.out / f"{name}.json"
        arguments = (file, "--out", str(result), *options)
        return _step(name, result, expected_s, script, *arguments, skip=skip)

    def _sweep(self, model: str) -> list[Step]:
        folder, ceilings = self.out / model, self.out / "ceilings.json"
        against = folder / "against_ceilings.json"
        run, compare = measures.sweep_and_fit, measures.layers_against_ceilings
        return [
            _step(f"sweep {model}", folder / "table.parquet", 240, run, model, folder),
            _step(f"ceilings of {model}", against, 5, compare, folder, ceilings, against),
        ]

    def _energy(self, compared: tuple[Compared, ...]) -> list[Step]:
        found = []
        for name, wanted, models in compared:
            for model in models if self.on_gpu else self.models:
                result = self.out / model / f"energy-{name}.json"
                arguments = (model, self.device_name, self.device, self.out / model, wanted, result)
                seconds = SCENARIO_S * len(wanted)
                title, skip = f"energy {model} {name}", self.gpu_only
                found.append(_step(title, result, seconds, model_energy, *arguments, skip=skip))
        return found

    def _routing(self, model: str) -> list[Step]:
        """Routers of a model, its layer under each policy, and the whole call as it is served."""
        folder = self.out / model
        table, routers = folder / "table.parquet", folder / "routers.json"
        arguments = ("routers.py", str(table), "--out", str(routers))
        found = [_step(f"routers {model}", routers, 60, script, *arguments)]
        if model in EXPERT_PARALLEL:  # one rank runs no whole layer
            return found
        run, result = policies.policies_step, _policies(folder)
        found.append(_step(f"policies {model}", result, 90, run, table, result.parent, result))
        for tokens in policies.BATCHES:
            result = folder / f"route-{tokens}.json"
            found.append(
                _step(f"route {model} {tokens}", result, 40, measures.route, table, tokens, result)
            )
        return found

    def _policies_energy(self, model: str, tokens: int) -> Step:
        folder = _policies(self.out / model).parent
        result = folder / f"energy-{tokens}.json"
        return _step(
            f"policies energy {model} {tokens}",
            result,
            SCENARIO_S * len(policies.POLICIES),
            policies.policies_energy,
            *(folder, self.device, self.device_name, tokens, result),
            skip=self.gpu_only,
        )

    def _counters(self, model: str) -> Step:
        folder = self.out / model
        result = folder / "counters.json"
        arguments = (measures.sweep_command(model, folder), folder, result)
        skip = self.gpu_only
        return _step("counters", result, 200, measures.counters, *arguments, skip=skip)

    def _vllm(self, model: str) -> Step:
        folder = self.out / f"{model}-vllm"
        result = folder / "against_ceilings.json"
        skip = self.gpu_only or measures.vllm_missing()
        arguments = (model, folder, self.out / "ceilings.json", result)
        return _step(f"vLLM {model}", result, 60, measures.vllm_layers, *arguments, skip=skip)

    def _tile_search(self, model: str) -> Step:
        folder = self.out / f"{model}-tiles"
        run = functools.partial(measures.tile_search, folder, on_gpu=self.on_gpu)
        return _step("tile search", folder / "search.json", 500, run)


def _policies(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-policies") / "policies.json"


def _step(
    name: str,
    result: Path,
    expected_s: float,
    run: Callable[..., object],
    *arguments: object,
    skip: str | None = None,
) -> Step:
    call = functools.partial(run, *arguments)
    return Step(name=name, result=result, expected_s=expected_s, run=call, skip=skip)
