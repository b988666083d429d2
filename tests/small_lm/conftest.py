"""A tiny model and tables for it; text of tiny source distributions made up here."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from costprof.core.device import DeviceFingerprint
from costprof.core.expert import ExpertClass, Kernel
from costprof.costmodel.manifest import Manifest, MoeSpec
from costprof.costmodel.rows import TableRow, rows_table
from costprof.costmodel.table import CostTable
from costprof.runtime.small_lm.model import SmallLM, SmallLMConfig
from costprof.runtime.small_lm.text import Corpus, SourcePackage

torch.set_num_threads(1)

TINY = SmallLMConfig(d_model=16, n_heads=2, n_layers=2, n_experts=8, top_k=3, d_ff=8, context=24)


@pytest.fixture(scope="session")
def make_table() -> Callable[..., CostTable]:
    """Return a maker of tables of equal experts: `start_us` and 1 µs a token, 2 mJ a µs."""

    def make(n_experts: int = TINY.n_experts, start_us: float = 100.0) -> CostTable:
        expert = ExpertClass(d_model=64, d_ff=64, dtype="float32")
        rows = []
        for tokens in (1, 16, 256):
            us = start_us + tokens
            rows.append(
                TableRow(
                    expert=expert,
                    kernel=Kernel(name="kernels:expert"),
                    tokens=tokens,
                    latency_us=(us, us, us),
                    energy_mj=(2 * us, 2 * us, 2 * us),
                    power_w=20.0,
                    temp_rise_c=0.5,
                )
            )
        classes = (rows[0].class_id,) * n_experts
        moe = MoeSpec(name="test", top_k=2, class_of_expert=classes)
        device = DeviceFingerprint(kind="cpu", name="chosen prices")
        return CostTable(rows_table(rows), Manifest(device=device, moes=(moe,)))

    return make


@pytest.fixture
def model() -> SmallLM:
    """Return the tiny model with random weights, in float64."""
    model = SmallLM(TINY)
    model.initialise(torch.Generator().manual_seed(1))
    return model.double().eval()


@pytest.fixture
def tokens() -> torch.Tensor:
    """Return bytes of six sequences of 21."""
    return torch.randint(256, (6, 21), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def make_sdist(tmp_path: Path) -> Callable[[str, Mapping[str, bytes]], SourcePackage]:
    """Return a maker of source distributions in `tmp_path`."""

    def make(name: str, files: Mapping[str, bytes]) -> SourcePackage:
        path = tmp_path / f"{name}-1.0.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            for inside, content in files.items():
                member = tarfile.TarInfo(f"{name}-1.0/{inside}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return SourcePackage(name=name, version="1.0", file=path.name, sha256=digest)

    return make


@pytest.fixture
def small_corpus() -> Corpus:
    """Return a corpus of repeating lines, easily learned and different by domain."""
    lines: Sequence[tuple[str, bytes]] = (
        ("python", b"def f(x): return x\n"),
        ("c", b"int f(int x) { }\n"),
        ("prose", b"A word and a word.\n"),
    )
    streams = {
        (split, domain): np.frombuffer(line * 100, np.uint8)
        for domain, line in lines
        for split in ("train", "dev", "test")
    }
    return Corpus(streams=streams, sha256="", files=dict.fromkeys(streams, 1))
