"""Small tables of experts that can really be run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from costprof.core.device import detect_device, software_versions
from costprof.core.expert import ExpertClass, Kernel
from costprof.core.work import expert_weight_bytes
from costprof.costmodel.manifest import Manifest, MoeSpec
from costprof.costmodel.rows import TableRow, rows_table
from costprof.costmodel.table import CostTable, write_table
from costprof.profiler.kernels import default_kernel_name

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def write(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a writer of table files for this CPU: a µs per stored KiB, one more per token."""

    def write(experts: Sequence[ExpertClass], top_k: int = 2) -> Path:
        rows = {}
        for expert in experts:
            for tokens in (1, 2, 4, 16):
                us = expert_weight_bytes(expert) / 1024 + tokens
                row = TableRow(
                    expert=expert,
                    kernel=Kernel(name=default_kernel_name(expert, "expert", "cpu")),
                    tokens=tokens,
                    latency_us=(0.9 * us, us, 1.1 * us),
                    energy_mj=(0.01 * us, 0.02 * us, 0.03 * us),
                    power_w=20.0,
                    temp_rise_c=0.5,
                )
                rows[expert, tokens] = row
        classes = tuple(rows[expert, 1].class_id for expert in experts)
        manifest = Manifest(
            device=detect_device("cpu"),
            software=software_versions(),
            moes=(MoeSpec(name="small", top_k=top_k, class_of_expert=classes),),
        )
        path = tmp_path_factory.mktemp("table") / "table.parquet"
        write_table(path, rows_table(rows.values()), manifest)
        return path

    return write


@pytest.fixture(scope="session")
def make_table(write: Callable[..., Path]) -> Callable[..., CostTable]:
    """Return a maker of loaded tables, see `write`."""

    def make(experts: Sequence[ExpertClass], top_k: int = 2) -> CostTable:
        return CostTable.load(write(experts, top_k))

    return make
