"""Real cost tables with chosen prices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from costprof.core.device import DeviceFingerprint
from costprof.core.expert import ExpertClass, Kernel
from costprof.costmodel.manifest import Manifest, MoeSpec
from costprof.costmodel.rows import TableRow, rows_table
from costprof.costmodel.table import CostTable

GRID = (1, 2, 4, 8, 16, 64)

# (µs to wake the expert, µs per token, mJ per µs)
Price = tuple[float, float, float]

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_table() -> Callable[..., CostTable]:
    """Return a maker of tables whose expert `e` costs what `prices[e]` says."""

    def make(prices: Sequence[Price], top_k: int = 2) -> CostTable:
        rows, classes = {}, []
        for price in prices:
            start, step, energy = price
            kinds = list(dict.fromkeys(prices))
            expert = ExpertClass(d_model=64, d_ff=64 * (1 + kinds.index(price)), dtype="float32")
            for tokens in GRID:
                us = start + step * tokens
                mj = us * energy
                row = TableRow(
                    expert=expert,
                    kernel=Kernel(name="kernels:expert"),
                    tokens=tokens,
                    latency_us=(us, us, us),
                    energy_mj=(mj, mj, mj),
                    power_w=20.0,
                    temp_rise_c=0.5,
                )
                rows[row.class_id, tokens] = row
            classes.append(row.class_id)
        moe = MoeSpec(name="test", top_k=top_k, class_of_expert=tuple(classes))
        device = DeviceFingerprint(kind="cpu", name="chosen prices")
        return CostTable(rows_table(rows.values()), Manifest(device=device, moes=(moe,)))

    return make
