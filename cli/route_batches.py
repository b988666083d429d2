"""What is routed by `route` and `explain`: made-up batches, or those of a recorded trace."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from costprof.cli.memory import check_memory
from costprof.core.errors import InputError
from costprof.costmodel.compatibility import TableDriftWarning
from costprof.costmodel.table import CostTable
from costprof.routing import Rows
from costprof.runtime.experts import DTYPES
from costprof.runtime.synthetic import Workload
from costprof.runtime.trace import load_trace

DEFAULT_MOE = "Qwen3-30B-A3B"
"""Whose shipped predictions are routed by where no table is named."""

_MOST_ROWS = 1 << 20
_DRAWN = 4
"""Copies of a batch, float32, that drawing it holds at once."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batches:
    """Batches of one layer, in order.

    Attributes:
        logits: [T, E] of each.
        rows: What the rows of each are; None: all decode.
        hidden: [T, d_model] of each, where there are any: a trace has none.
        router: [E, d_model], likewise.
        gate: What a trace says of its gate, as arguments of `Gate`; None where there is no trace.
    """

    logits: list[Tensor]
    rows: list[Rows] | None = None
    hidden: list[Tensor] | None = None
    router: Tensor | None = None
    gate: Mapping[str, Any] | None = None


def price_table(path: Path | None, moe: str | None, *, allow_device_mismatch: bool) -> CostTable:
    """Return the table at `path`, the shipped predictions for None.

    Raises:
        TableError: it cannot be loaded, or is of another device.
    """
    if path is not None:
        return CostTable.load(path, moe=moe, allow_device_mismatch=allow_device_mismatch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TableDriftWarning)  # a note says it
        return CostTable.shipped(moe or DEFAULT_MOE)


def made_up(
    workload: Workload,
    table: CostTable,
    *,
    tokens: int,
    batches: int,
    generator: torch.Generator,
    device: torch.device,
) -> Batches:
    """Return batches of `workload` for the layer of `table`, hidden states and router included.

    Raises:
        InputError: they are too many.
    """
    expert = table.expert_class(0)
    dtype = DTYPES[expert.dtype]
    rows = tokens * batches
    if rows > _MOST_ROWS:
        raise InputError(
            f"{batches} made-up batches of {tokens} tokens are {rows} rows",
            "nothing was routed",
            f"ask for at most {_MOST_ROWS} rows",
        )
    width = expert.d_model + table.n_experts
    check_memory(
        f"{batches} made-up batches of {tokens} tokens",
        rows * width * dtype.itemsize + tokens * expert.d_model * 4 * _DRAWN,
        device,
        way_out="ask for fewer",
    )
    router = workload.router(table.n_experts, expert.d_model, generator).to(device)
    hidden = [
        workload.batch(tokens, expert.d_model, generator).to(device, dtype) for _ in range(batches)
    ]
    with torch.inference_mode():
        logits = [torch.nn.functional.linear(x, router.to(dtype)) for x in hidden]
    return Batches(logits=logits, hidden=hidden, router=router)


def recorded(path: Path, table: CostTable) -> Batches:
    """Return the batches of the trace at `path`.

    Raises:
        InputError: it cannot be read, or is of a layer with another number of experts.
    """
    trace = load_trace(path)
    n_experts = trace.logits[0].shape[1]
    if n_experts != table.n_experts:
        raise InputError(
            f"{path} has logits of {n_experts} experts, the table prices {table.n_experts}",
            "nothing was routed",
            "name the table of this layer, or its --moe",
        )
    return Batches(logits=trace.logits, rows=trace.rows, gate=trace.gate)
