"""Rows of cost tables with chosen prices, and a strategy that draws any."""

from __future__ import annotations

import dataclasses
import math

from hypothesis import strategies as st

from costprof.core.expert import ExpertClass, Kernel
from costprof.costmodel.rows import TableRow, Tier

KERNEL = Kernel(name="kernels:expert", framework="torch 2.13.0", source_hash="aa")
GRID = (1, 2, 4, 8, 16, 32, 64, 128)


def row(
    tokens: int,
    latency_us: float,
    *,
    d_ff: int = 128,
    spread: float = 0.03,
    tier: Tier = "measured",
    kernel: Kernel = KERNEL,
    **other: object,
) -> TableRow:
    """A row whose p05 and p95 lie `spread` around the median; energy is twice the latency."""
    low, high = math.exp(-spread), math.exp(spread)
    return TableRow(
        expert=ExpertClass(d_model=64, d_ff=d_ff, dtype="float32"),
        kernel=kernel,
        tokens=tokens,
        latency_us=(latency_us * low, latency_us, latency_us * high),
        energy_mj=(2 * latency_us * low, 2 * latency_us, 2 * latency_us * high),
        tier=tier,
        **other,  # type: ignore[arg-type]
    )


def curve(factor: float = 1.0, **other: object) -> list[TableRow]:
    return [row(n, (10.0 + n) * factor, **other) for n in GRID]  # type: ignore[arg-type]


@st.composite
def tables(draw: st.DrawFn) -> list[TableRow]:
    keys = draw(
        st.sets(
            st.tuples(
                st.sampled_from([64, 128]), st.sampled_from(GRID), st.sampled_from(["", "b"])
            ),
            min_size=1,
            max_size=12,
        )
    )
    return [
        row(
            tokens,
            draw(st.floats(1.0, 1e4)),
            d_ff=d_ff,
            spread=draw(st.floats(0.0, 0.5)),
            tier=draw(st.sampled_from(["measured", "interpolated", "predicted"])),
            kernel=dataclasses.replace(KERNEL, source_hash=source),
            energy_source=draw(st.sampled_from(["modelled", "nvml_counter"])),
        )
        for d_ff, tokens, source in sorted(keys)
    ]
