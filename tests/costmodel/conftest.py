"""Small tables with chosen prices."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from costprof.core.device import DeviceFingerprint, detect_device, software_versions
from costprof.core.expert import ExpertClass, Kernel
from costprof.costmodel.manifest import Composition, Manifest, MoeSpec
from costprof.costmodel.rows import TableRow

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
