"""Public layers of two devices as files: an H200 of known constants, a B200 of faster ones."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from public_layers import CONSTANTS, NOISE, POWERS, public_table

from costprof.costmodel.grouped.power import layer_power_w
from costprof.costmodel.grouped.public import public_points
from costprof.costmodel.grouped.stage_time import stage_times
from costprof.costmodel.grouped.work import layer_work

TARGET = "NVIDIA B200"
LIMIT_W = 1000.0
_MEMORY = ("weight_bytes_per_s", "row_bytes_per_s", "elementwise_bytes_per_s", "reduce_bytes_per_s")
_FASTER_MEMORY, _FASTER_MATHS = 8.0 / 4.8, 2250.0 / 989.0
_SHAPE_NEW_TO_THE_SOURCE = 128  # experts


@dataclass(frozen=True)
class Devices:
    """Files of the layers: of the source less one shape, of the target all and a few."""

    source: Path
    target: Path
    few: Path

    @classmethod
    def written(cls, folder: Path, number: int) -> Devices:
        """Write them into `folder`; the few are `number` drawn ones."""
        every = public_table()
        known = every.filter(pc.less(every["num_experts"], _SHAPE_NEW_TO_THE_SOURCE))
        target = _on_target(every)
        at = np.random.default_rng(3).choice(every.num_rows, number, replace=False)
        found = cls(folder / "h200.parquet", folder / "b200.parquet", folder / "b200_few.parquet")
        for path, table in ((found.source, known), (found.target, target)):
            pq.write_table(table, path)
        pq.write_table(target.take(at), found.few)
        return found


def _on_target(table: pa.Table) -> pa.Table:
    """Return the public layers of `table` as the target runs them."""
    points = public_points(table)
    faster = {name: _FASTER_MEMORY * getattr(CONSTANTS, name) for name in _MEMORY}
    faster["flops_per_s"] = _FASTER_MATHS * CONSTANTS.flops_per_s
    work, rng = layer_work(points), np.random.default_rng(11)
    latency_us = stage_times(work, dataclasses.replace(CONSTANTS, **faster)).total_us
    # What no formula of ours knows is the same on both; see public_layers.
    latency_us *= np.where(points.inner % 128, 1.3, 1.0) * (
        1.0 + 0.08 * np.sin(points.inner * points.tp_size + points.experts)
    )
    power_w = layer_power_w(work, latency_us, POWERS, LIMIT_W)
    read_us = latency_us * np.exp(NOISE * rng.standard_normal(len(points)))
    columns = {
        "device": pa.array([TARGET] * table.num_rows),
        "latency": pa.array(read_us * 1e-3),
        "power": pa.array(power_w),
        "power_limit": pa.array([LIMIT_W] * table.num_rows),
    }
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, values)
    return table
