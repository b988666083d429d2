"""Turn one scenario's outcome into its row of `measurements/`."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from typing import Any, Protocol

from costprof.core.device import DeviceFingerprint
from costprof.core.expert import class_id
from costprof.profiler.cold import MIXED, Copies, cold_problem
from costprof.profiler.redact import redact
from costprof.profiler.scenario import Scenario
from costprof.profiler.statistics import Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Energy of one call in millijoules, power in watts, temperature rise in degrees Celsius."""

    active_mj: float
    idle_mj: float
    low_mj: float
    high_mj: float
    power_mean_w: float
    temp_rise_c: float
    source: str


class EnergyModel(Protocol):
    """Prices a call whose energy was not measured; `None` where it cannot."""

    def __call__(self, *, flops: float, bytes: float, latency_us: float) -> Energy | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """By what, where and under which software a sweep measures."""

    backend: str
    tool_version: str
    device: DeviceFingerprint
    software: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """The best attempt at a scenario so far: timings, or an error.

    `copies` are those of the weights it rotated through. `notes` say what else a reader has to know
    of the timings, each as a fact, then its particulars in brackets.
    """

    run_id: str
    summary: Summary | None
    problem: str | None
    threads: int | None
    timer: str | None
    copies: Copies | None
    measured_at: datetime.datetime
    notes: tuple[str, ...] = ()


def measurement_row(
    scenario: Scenario,
    attempt: Attempt,
    attempts: int,
    provenance: Provenance,
    energy_model: EnergyModel | None,
) -> dict[str, Any]:
    """Return the row of `scenario`; columns as in `schema.MEASUREMENTS`."""
    summary = attempt.summary
    status = "failed" if summary is None else "noisy" if attempt.problem else "ok"
    device = provenance.device
    row: dict[str, Any] = {
        **_identity(scenario),
        **_weights(scenario, attempt, device),
        "status": status,
        "error": redact(attempt.problem),
        "note": redact("; ".join(row_notes(scenario, attempt, device)) or None),
        "attempts": attempts,
        "backend": provenance.backend,
        "timer": attempt.timer,
        "tool_version": provenance.tool_version,
        "costprof_version": provenance.software["costprof"],
        "python_version": provenance.software["python"],
        "torch_version": provenance.software["torch"],
        "triton_version": provenance.software["triton"],
        "num_threads": attempt.threads,
        "device_id": device.device_id,
        "device_kind": device.kind,
        "device_name": device.name,
        "device_units": device.units,
        "driver_version": device.driver,
        "power_limit_w": device.power_limit_w or None,
        "run_id": attempt.run_id,
        "measured_at": attempt.measured_at,
    }
    if summary is not None:
        row |= _timing(summary)
        if energy_model is not None:
            row |= _energy(scenario, summary, energy_model)
    return row


def row_notes(scenario: Scenario, attempt: Attempt, device: DeviceFingerprint) -> tuple[str, ...]:
    """Return what else a reader has to know of a row: a fact each, its particulars in brackets."""
    problem = cold_problem(scenario, device, attempt.copies) if attempt.copies else None
    return (*attempt.notes, *([problem] if problem else []))


def _weights(scenario: Scenario, attempt: Attempt, device: DeviceFingerprint) -> dict[str, Any]:
    """How cold the weights were: a row that fell short is of another class than the cold ones."""
    if attempt.copies is None:
        return {}
    found: dict[str, Any] = {"weight_copies": attempt.copies.number}
    if cold_problem(scenario, device, attempt.copies):
        found["cache_state"] = MIXED
        found["class_id"] = class_id(scenario.expert, scenario.op, scenario.kernel, MIXED)
    return found


def _identity(scenario: Scenario) -> dict[str, Any]:
    work = scenario.work()
    kernel = scenario.kernel
    row: dict[str, Any] = {
        "scenario_id": scenario.scenario_id,
        "class_id": scenario.class_id,
        **scenario.expert.to_dict(),
        "op": scenario.op,
        "kernel": kernel.name,
        "kernel_source_hash": kernel.source_hash,
        "framework": kernel.framework,
        "config": json.dumps(kernel.config, sort_keys=True),
        "cache_state": scenario.cache_state,
        "tokens": scenario.tokens,
        "flops": work.flops,
        "weight_bytes": work.weight_bytes,
        "activation_bytes": work.activation_bytes,
    }
    if scenario.layer is not None:
        row |= scenario.layer.to_dict()
        row["batch_tokens"] = scenario.tokens * scenario.layer.ep_size
    return row


def _timing(summary: Summary) -> dict[str, Any]:
    return {
        "latency_us_mean": summary.mean_us,
        "latency_us_p05": summary.p05_us,
        "latency_us_p25": summary.p25_us,
        "latency_us_p50": summary.p50_us,
        "latency_us_p75": summary.p75_us,
        "latency_us_p95": summary.p95_us,
        "n": summary.n,
        "calls_per_sample": summary.calls_per_sample,
        "robust_cv": summary.robust_cv,
        "pass_disagreement": summary.pass_disagreement,
        "kernel_sum_us": summary.kernel_sum_us,
        "wall_span_us": summary.p50_us,
        "kernels_per_call": summary.kernels_per_call,
    }


def _energy(scenario: Scenario, summary: Summary, model: EnergyModel) -> dict[str, Any]:
    work = scenario.work()
    energy = model(flops=work.flops, bytes=work.bytes, latency_us=summary.p50_us)
    if energy is None:
        return {}
    return {
        "energy_active_mj": energy.active_mj,
        "energy_idle_mj": energy.idle_mj,
        "energy_mj_low": energy.low_mj,
        "energy_mj_high": energy.high_mj,
        "energy_mj": energy.active_mj + energy.idle_mj,
        "energy_source": energy.source,
        "power_mean_w": energy.power_mean_w,
        "temp_rise_c": energy.temp_rise_c,
    }
