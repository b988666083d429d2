"""Small tables with chosen prices, and datasets of a device whose costs are known."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from costprof.core.device import DeviceFingerprint, detect_device, software_versions
from costprof.core.expert import CacheState, ExpertClass, Kernel, Op, class_id
from costprof.core.files import write_json
from costprof.core.work import op_work
from costprof.costmodel.manifest import Composition, Manifest, MoeSpec
from costprof.costmodel.rows import TableRow
from costprof.profiler.dataset import write_measurements

KERNEL = Kernel(name="kernels:expert", framework="torch 2.13.0")
SMALL = ExpertClass(d_model=64, d_ff=128, dtype="float32")
LARGE = ExpertClass(d_model=64, d_ff=512, dtype="float32")
GRID = (1, 2, 3, 4, 6, 8, 16, 32)


@pytest.fixture
def rows() -> list[TableRow]:
    """Two classes on `GRID`; latency 10 + n and 40 + 4 n µs, energy twice that in mJ."""
    made = []
    for expert, start, step in ((SMALL, 10.0, 1.0), (LARGE, 40.0, 4.0)):
        for tokens in GRID:
            latency = start + step * tokens
            made.append(
                TableRow(
                    expert=expert,
                    kernel=KERNEL,
                    tokens=tokens,
                    latency_us=(0.9 * latency, latency, 1.2 * latency),
                    energy_mj=(1.8 * latency, 2 * latency, 2.4 * latency),
                    power_w=20.0,
                    temp_rise_c=0.5,
                )
            )
    return made


@pytest.fixture
def cpu() -> DeviceFingerprint:
    """The CPU of this machine."""
    return detect_device("cpu")


@pytest.fixture
def make_manifest(cpu: DeviceFingerprint, rows: list[TableRow]) -> Callable[..., Manifest]:
    """Return a maker of manifests of a four-expert MoE: large, small, small, large."""
    large, small = rows[-1].class_id, rows[0].class_id

    def make(
        compositions: dict[str, Composition] | None = None,
        device: DeviceFingerprint | None = None,
        software: dict[str, str] | None = None,
        moes: tuple[MoeSpec, ...] | None = None,
    ) -> Manifest:
        four = MoeSpec(name="four", top_k=2, class_of_expert=(large, small, small, large))
        return Manifest(
            device=device or cpu,
            software=software_versions() if software is None else software,
            moes=(four,) if moes is None else moes,
            compositions=compositions or {},
        )

    return make


@dataclasses.dataclass(frozen=True)
class World:
    """A device whose cost is known, to make datasets that a fit can be checked against.

    A call takes `launch + max(flops / peak, bytes / bandwidth)`, times a smooth factor of the
    class over log2 tokens (`wiggle` is its amplitude), times log-normal noise (`noise`). A layer
    takes `layer_base_us + layer_scale` times the sum of its experts. Calls draw `watts` above idle.
    """

    launch_us: float = 5.0
    peak_flops: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"none": 50e9, "int4": 20e9}
    )
    bytes_per_s: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"cold": 8e9, "warm": 30e9}
    )
    wiggle: float = 0.0
    noise: float = 0.0
    layer_base_us: float = 40.0
    layer_scale: float = 0.8
    watts: float = 10.0
    seed: int = 0

    def latency_us(
        self, expert: ExpertClass, cache_state: CacheState, tokens: int, op: Op = "expert"
    ) -> float:
        """Return the true median latency."""
        work = op_work(expert, op, tokens)
        bound_s = max(
            work.flops / self.peak_flops[expert.quantisation],
            work.bytes / self.bytes_per_s[cache_state],
        )
        factor = math.exp(self.wiggle * math.sin(math.log2(tokens) + expert.d_ff))
        return (self.launch_us + bound_s * 1e6) * factor

    def row(
        self,
        expert: ExpertClass,
        tokens: int,
        *,
        cache_state: CacheState = "cold",
        op: Op = "expert",
        counts: tuple[int, ...] | None = None,
        **other: Any,
    ) -> dict[str, Any]:
        """Return one row of `measurements/`; `other` overrides columns."""
        if counts is None:
            true_us = self.latency_us(expert, cache_state, tokens, op)
        else:
            parts = [self.latency_us(expert, cache_state, n) for n in counts if n]
            true_us = self.layer_base_us + self.layer_scale * sum(parts)
        draw = random.Random(f"{self.seed} {expert} {tokens} {cache_state} {op} {counts}")
        p50 = true_us * math.exp(draw.gauss(0.0, self.noise))
        name = "kernels:layer" if op == "layer" else KERNEL.name
        kernel = dataclasses.replace(KERNEL, name=name)
        work = op_work(expert, op, tokens)
        energy_mj = self.watts * p50 / 1e3
        row: dict[str, Any] = {
            **expert.to_dict(),
            "class_id": class_id(expert, op, kernel, cache_state),
            "op": op,
            "kernel": name,
            "framework": kernel.framework,
            "kernel_source_hash": "",
            "config": "{}",
            "cache_state": cache_state,
            "tokens": tokens,
            "counts": counts,
            "status": "ok",
            "latency_us_p05": 0.97 * p50,
            "latency_us_p50": p50,
            "latency_us_p95": 1.05 * p50,
            "n": 50,
            "robust_cv": 0.02,
            "pass_disagreement": 0.005,
            "flops": work.flops,
            "weight_bytes": work.weight_bytes,
            "activation_bytes": work.activation_bytes,
            "energy_active_mj": energy_mj,
            "energy_idle_mj": 4.0 * p50 / 1e3,
            "energy_mj_low": 0.5 * energy_mj,
            "energy_mj_high": 2.0 * energy_mj,
            "energy_source": "modelled",
            "temp_rise_c": 1e-3 * energy_mj,
            "num_threads": 1,
            "device_kind": "cpu",
            "device_name": "known CPU",
            "device_units": 4,
        }
        return {**row, **other}


@pytest.fixture(scope="session")
def world() -> type[World]:
    """The maker of known devices."""
    return World


@pytest.fixture(scope="session")
def write_dataset() -> Callable[..., Path]:
    """Return a writer of datasets: folder, rows, and what `sweep.json` says unless it is None."""

    def write(
        folder: Path, rows: list[dict[str, Any]], description: dict[str, Any] | None = None
    ) -> Path:
        write_measurements(folder, "run", rows)
        if description is not None:
            write_json(folder / "sweep.json", description)
        return folder

    return write


@pytest.fixture
def dataset(tmp_path: Path, write_dataset: Callable[..., Path]) -> Callable[..., Path]:
    """Return a writer of one dataset a test: rows and description."""

    def write(rows: list[dict[str, Any]], description: dict[str, Any] | None = None) -> Path:
        return write_dataset(tmp_path / "known", rows, description)

    return write
