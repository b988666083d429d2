"""Do predictions choose what measurements would? The least energy among a layer's candidates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

TIE = 0.03
"""Candidates this close to the best one, by measurement, are as good as it."""


def least_energy_choices(frame: pa.Table) -> dict[str, Any] | None:
    """Return how often the least predicted energy is the least measured one, and what misses cost.

    Candidates do the same work: kernels, shards and precisions of one layer shape at one batch and
    routing, their energy that of all ranks together; those whose energy was measured and predicted.
    None where there is nothing to choose.
    """
    both = pc.and_(pc.is_valid(frame["energy_mj"]), pc.is_valid(frame["energy_mj_p50"]))
    table = frame.filter(both)
    keys = table.select(["shape", "tokens", "distribution"]).to_pylist()
    ranks = table["ep_size"].to_numpy() * table["tp_size"].to_numpy()
    measured = table["energy_mj"].to_numpy() * ranks
    told = table["energy_mj_p50"].to_numpy() * ranks
    groups: dict[tuple[Any, ...], list[int]] = {}
    for at, key in enumerate(keys):
        groups.setdefault(tuple(key.values()), []).append(at)
    extra = np.array(
        [
            measured[at[int(np.argmin(told[at]))]] / measured[at].min() - 1.0
            for at in (np.array(group) for group in groups.values() if len(group) > 1)
        ]
    )
    if not len(extra):
        return None
    return {
        "choices": len(extra),
        "agreement": float(100.0 * (extra <= TIE).mean()),
        "mean_extra_energy": float(100.0 * extra.mean()),
    }
