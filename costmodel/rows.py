"""Columns of a cost table, and the builder of its rows.

A row prices one (class, tokens, config) and, where `op` is "layer", one layer shape. `energy_mj` is
active energy: what the call adds to the power the device draws idle. `power_w` is the mean total
power during the call.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import pyarrow as pa

from costprof.core.expert import CacheState, ExpertClass, Kernel, Op, class_id
from costprof.core.work import Work, op_work

Tier = Literal["measured", "interpolated", "extrapolated", "predicted", "transferred"]
"""How a price came about. `predicted`: by a fitted model, without a measurement of the class."""
TIERS: tuple[Tier, ...] = get_args(Tier)
"""The tiers, the best founded first."""

EnergySource = Literal[
    "nvml_counter", "nvml_integral", "external_meter", "power_samples", "modelled"
]

CLASS_FIELDS = tuple(field.name for field in dataclasses.fields(ExpertClass))
"""Columns that hold the fields of `ExpertClass`, under their own names."""

LAYER_FIELDS = ("experts", "top_k", "ep_size", "tp_size", "distribution")
"""Columns that say which layer a row prices; NULL for an expert.

As in the dataset: `experts` are those of one rank, `tokens` of such a row the whole batch over all
ranks, and `distribution` names how the tokens are spread over the experts.
"""
KEY_FIELDS = ("class_id", *LAYER_FIELDS, "config", "tokens")
"""Columns that name a row, in the order of the file; no two rows of a table agree in all."""

_S, _I, _F = pa.string(), pa.int64(), pa.float64()

TABLE_SCHEMA = pa.schema(
    [
        ("class_id", _S),
        ("block", _S),
        ("d_model", _I),
        ("d_ff", _I),
        ("activation", _S),
        ("dtype", _S),
        ("quantisation", _S),
        ("n_heads", _I),
        ("n_kv_heads", _I),
        ("head_dim", _I),
        ("context_len", _I),
        ("op", _S),
        ("kernel", _S),
        ("kernel_source_hash", _S),
        ("framework", _S),
        ("cache_state", _S),
        ("config", _S),  # tile parameters as JSON, "{}" where there are none
        ("tokens", _I),
        ("latency_us_p05", _F),
        ("latency_us_p50", _F),
        ("latency_us_p95", _F),
        ("energy_mj_p05", _F),
        ("energy_mj_p50", _F),
        ("energy_mj_p95", _F),
        ("power_w", _F),
        ("power_peak_w", _F),
        ("temp_rise_c", _F),  # always modelled
        ("bytes", _F),
        ("flops", _F),
        ("counters", pa.map_(_S, _F)),
        ("tier", _S),
        ("energy_source", _S),
        ("experts", _I),
        ("top_k", _I),
        ("ep_size", _I),
        ("tp_size", _I),
        ("distribution", _S),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """The price of one class at one token count under one tile config.

    `latency_us` and `energy_mj` are (p05, p50, p95). `work` is the compulsory work of the call;
    None: that of one expert, from its shape. A layer's depends on its counts: give it. The fields
    of `LAYER_FIELDS` are for rows of op "layer".
    """

    expert: ExpertClass
    kernel: Kernel
    tokens: int
    latency_us: tuple[float, float, float]
    energy_mj: tuple[float, float, float]
    op: Op = "expert"
    cache_state: CacheState = "cold"
    power_w: float | None = None
    power_peak_w: float | None = None
    temp_rise_c: float | None = None
    counters: dict[str, float] = field(default_factory=dict)
    tier: Tier = "measured"
    energy_source: EnergySource = "modelled"
    experts: int | None = None
    top_k: int | None = None
    ep_size: int | None = None
    tp_size: int | None = None
    distribution: str | None = None
    work: Work | None = None

    @property
    def class_id(self) -> str:
        """Identity of the class this row belongs to."""
        return class_id(self.expert, self.op, self.kernel, self.cache_state)

    def to_dict(self) -> dict[str, Any]:
        """Return the row by the names of `TABLE_SCHEMA`."""
        work = self.work or op_work(self.expert, self.op, self.tokens)
        low, mid, high = self.latency_us
        energy_low, energy_mid, energy_high = self.energy_mj
        return {
            **self.expert.to_dict(),
            "class_id": self.class_id,
            "op": self.op,
            "kernel": self.kernel.name,
            "kernel_source_hash": self.kernel.source_hash,
            "framework": self.kernel.framework,
            "cache_state": self.cache_state,
            "config": json.dumps(self.kernel.config, sort_keys=True),
            "tokens": self.tokens,
            "latency_us_p05": low,
            "latency_us_p50": mid,
            "latency_us_p95": high,
            "energy_mj_p05": energy_low,
            "energy_mj_p50": energy_mid,
            "energy_mj_p95": energy_high,
            "power_w": self.power_w,
            "power_peak_w": self.power_peak_w,
            "temp_rise_c": self.temp_rise_c,
            "bytes": work.bytes,
            "flops": work.flops,
            "counters": list(self.counters.items()),
            "tier": self.tier,
            "energy_source": self.energy_source,
            **{name: getattr(self, name) for name in LAYER_FIELDS},
        }


def worst_tier(*tiers: str) -> Tier:
    """Return the least founded of `tiers`.

    >>> worst_tier("measured", "predicted", "interpolated")
    'predicted'
    """
    return TIERS[max(TIERS.index(tier) for tier in tiers)]


def rows_table(rows: Iterable[TableRow]) -> pa.Table:
    """Return `rows` as an Arrow table of `TABLE_SCHEMA`, sorted by `KEY_FIELDS`."""
    return sorted_rows(pa.Table.from_pylist([row.to_dict() for row in rows], schema=TABLE_SCHEMA))


def sorted_rows(rows: pa.Table) -> pa.Table:
    """Return `rows` sorted by `KEY_FIELDS`, NULL last."""
    return rows.sort_by([(name, "ascending") for name in KEY_FIELDS])
