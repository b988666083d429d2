"""Policies against plain top-k on routed traces: what the experts they leave really cost.

A trace is a batch of router logits. Each policy routes it, and the token counts it gives the
experts become a layer that is swept, and its energy measured, like any other: cold weights, CUDA
graphs, our grouped kernel. Routing itself is timed apart, by `routers.py`. Router and batches are
made up (`costprof.runtime.synthetic`).
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from costprof.core.device import DeviceFingerprint
from costprof.core.errors import CostprofError
from costprof.core.files import write_json
from costprof.costmodel.table import CostTable
from costprof.profiler.dataset import read_measurements
from costprof.profiler.plan import Plan, make_plan
from costprof.profiler.scenario import DeviceName, Scenario
from costprof.profiler.spec import ExpertSpec, LayerSpec, SweepSpec, TimingSpec, load_spec
from costprof.routing import Gate, Marginal, Objective, TopK, route
from costprof.routing.contract import Policy
from costprof.runtime.synthetic import Workload
from gpu_steps.children import costprof
from gpu_steps.energy import measure_energy
from gpu_steps.measures import INPROCESS
from gpu_steps.running import Refused
from gpu_steps.specs import write_spec

BATCHES = (1, 4, 16, 64, 256)
TRACES = 4
REHEARSAL = TimingSpec(target_ms=30, remeasure=0, threads=1)
PLAIN = "top-k"
POLICIES: dict[str, Policy] = {
    PLAIN: TopK(),
    "marginal, latency": Marginal(lam=0.05),
    "marginal, energy": Marginal(lam=0.05, objective=Objective(latency=0, energy=1)),
}
"""Every policy there is; `lam` is that of `costprof route`."""


def logits_of(table: CostTable, tokens: int, traces: int, *, seed: int = 0) -> list[torch.Tensor]:
    """Return the router logits [tokens, E] of some batches, float32 on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    workload, d_model = Workload(), table.expert_class(0).d_model
    router = workload.router(table.n_experts, d_model, generator)
    return [workload.batch(tokens, d_model, generator) @ router.T for _ in range(traces)]


def routed(table: CostTable, batches: Sequence[int] = BATCHES) -> dict[str, Any]:
    """Route traces by every policy.

    Returns:
        `traces`, one record for each batch size, policy and trace with `counts`, rows per expert;
        `left_out`, why a policy could not decide.
    """
    gate = Gate(top_k=table.moe.top_k)
    found: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    for tokens in batches:
        for trace, logits in enumerate(logits_of(table, tokens, TRACES)):
            for name, policy in POLICIES.items():
                try:
                    chosen = route(logits, table=table, gate=gate, policy=policy)
                except CostprofError as error:
                    left_out[name] = str(error)
                    continue
                found.append(
                    {
                        "tokens": tokens,
                        "trace": trace,
                        "policy": name,
                        "counts": chosen.counts.tolist(),
                        "gate_mass_lost": float(chosen.gate_mass_lost.mean()),
                    }
                )
    return {"traces": found, "left_out": left_out, "router": "made up, costprof.runtime.synthetic"}


def policies_step(table_file: Path, folder: Path, result: Path) -> None:
    """Route traces, once, sweep the layers they make and compare the policies' latencies.

    Raises:
        Refused: no policy but top-k could decide, or no layer was measured.
    """
    if not (folder / "spec.toml").exists():
        table = CostTable.load(table_file)
        decided = routed(table)
        if len(decided["left_out"]) == len(POLICIES) - 1:
            raise Refused("; ".join(decided["left_out"].values()))
        write_json(folder / "traces.json", decided)
        write_layers(table, decided["traces"], folder / "spec.toml")
    costprof("sweep", str(folder / "spec.toml"), "--out", str(folder), "--resume", *INPROCESS)
    decided = json.loads((folder / "traces.json").read_text(encoding="utf-8"))
    rows = read_measurements(folder).to_pylist()
    latency_us = {tuple(row["counts"]): row["latency_us_p50"] for row in rows}
    figures = compared(decided["traces"], latency_us)
    if not figures:
        raise Refused("no layer was measured under both top-k and another policy")
    write_json(
        result,
        {
            "figures": figures,
            "left_out": decided["left_out"],
            "router": decided["router"],
            "device": rows[0]["device_name"],
            "not_ok": sum(row["status"] != "ok" for row in rows),
        },
    )


def write_layers(table: CostTable, traces: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the sweep of the layers that `traces` make of the table's first expert class."""
    expert = table.expert_class(0)
    vectors = {tuple(each["counts"]): None for each in traces}
    layer = LayerSpec(
        expert="expert",
        experts=table.n_experts,
        # A policy may give a token fewer experts than top-k: what the kernel gets is rows.
        top_k=1,
        counts=[list(counts) for counts in vectors],
    )
    on_gpu = table.manifest.device.kind == "gpu"
    spec = SweepSpec(
        name=f"{table.moe.name} policies",
        experts={"expert": ExpertSpec(**expert.to_dict())},
        layer=[layer],
        timing=TimingSpec() if on_gpu else REHEARSAL,
    )
    write_spec(path, spec)


def compared(
    traces: Sequence[dict[str, Any]], latency_us: dict[tuple[int, ...], float | None]
) -> list[dict[str, Any]]:
    """Set each policy against top-k, trace by trace, at each batch size."""
    plain = {
        (each["tokens"], each["trace"]): latency_us.get(tuple(each["counts"]))
        for each in traces
        if each["policy"] == PLAIN
    }
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for each in traces:
        groups.setdefault((each["tokens"], each["policy"]), []).append(each)
    figures = []
    for (tokens, policy), members in groups.items():
        pairs = [
            (latency_us.get(tuple(each["counts"])), plain[tokens, each["trace"]], each)
            for each in members
        ]
        known = [(mine, other, each) for mine, other, each in pairs if mine and other]
        if known:
            figures.append(
                {
                    "tokens": tokens,
                    "policy": policy,
                    "traces": len(known),
                    "active_experts": statistics.fmean(_active(each) for _, _, each in known),
                    "gate_mass_lost": statistics.fmean(e["gate_mass_lost"] for _, _, e in known),
                    "layer_us": _spread([mine for mine, _, _ in known]),
                    "ratio_to_top_k": _spread([mine / other for mine, other, _ in known]),
                }
            )
    others = [figure for figure in figures if figure["policy"] != PLAIN]
    return figures if others else []


def _active(trace: dict[str, Any]) -> int:
    return sum(count > 0 for count in trace["counts"])


def _spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def policies_energy(
    folder: Path, device: DeviceFingerprint, device_name: DeviceName, tokens: int, result: Path
) -> None:
    """Measure the energy of the first trace of so many tokens under every policy, there and back.

    Raises:
        Refused: the traces are not swept, or no energy could be measured.
    """
    spec = folder / "spec.toml"
    if not spec.exists():
        raise Refused("the traces are not routed and swept")
    plan = make_plan(load_spec(spec), device_name)
    traces = json.loads((folder / "traces.json").read_text(encoding="utf-8"))["traces"]
    scenarios = {
        each["policy"]: _scenario(plan, tuple(each["counts"]))
        for each in traces
        if (each["tokens"], each["trace"]) == (tokens, 0)
    }
    distinct = list({s.scenario_id: s for s in scenarios.values()}.values())
    measured = measure_energy(folder, plan, device, distinct)
    # Two policies that decide alike share a scenario.
    by_policy = {policy: scenario.scenario_id for policy, scenario in scenarios.items()}
    write_json(result, {**measured, "tokens": tokens, "scenario_of_policy": by_policy})


def _scenario(plan: Plan, counts: tuple[int, ...]) -> Scenario:
    return next(s for s in plan.scenarios if s.layer is not None and s.layer.counts == counts)
