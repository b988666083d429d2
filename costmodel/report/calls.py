"""What the figures see of a dataset, whether it holds single experts or whole layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Strings = npt.NDArray[np.str_]


@dataclass(frozen=True)
class Calls:
    """n measured calls; all arrays [n], NaN where a number is not known.

    Attributes:
        series: What they are told apart by in plots: op and precision.
        precision: Storage of the weights.
        shape: Sizes; calls of one shape do the same work at the same tokens.
        choice: How that work was done: kernel, precision, shard, tile config.
        cell: Shape and choice, as rows of a cost surface.
        tokens: Tokens of a call; a layer's over all ranks.
        latency_us: Measured.
        flops, bytes: Compulsory work, computed from shapes.
        energy_mj: All energy of a call, by one rank; NaN where it is not to be trusted.
        power_w: Mean power during the call.
        rise_c: Temperature rise.
        ranks: Ranks that share the tokens.
        active: Experts awake.
        even: Whether the tokens are spread evenly, so that all ranks cost alike.
        features: What may predict the cost, by name.
    """

    series: Strings
    precision: Strings
    shape: Strings
    choice: Strings
    cell: Strings
    tokens: Array
    latency_us: Array
    flops: Array
    bytes: Array
    energy_mj: Array
    power_w: Array
    rise_c: Array
    ranks: Array
    active: Array
    even: npt.NDArray[np.bool_]
    features: Mapping[str, Array]

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, index: npt.NDArray[Any]) -> Calls:
        """Return the calls at `index` (positions or a mask)."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "features"}
        return Calls(
            **{name: value[index] for name, value in own.items()},
            features={name: value[index] for name, value in self.features.items()},
        )


@dataclass(frozen=True)
class Errors:
    """Errors of one method on n left-out values, in percent; `coverage` of its 90 % interval."""

    what: str
    method: str
    points: int
    mape: float
    median: float
    p90: float
    coverage: float | None = None


@dataclass(frozen=True)
class HeldOut:
    """Latencies of n calls, measured, and predicted without them; all arrays [n].

    Attributes:
        how: What was left out, in words.
        series, tokens: Of the calls.
        half_width: Half the width of the 90 % interval, in log latency.
        baselines: What simpler methods say, by name; NaN where one can say nothing.
        errors: Of latency and energy, by method.
        energy_note: How to read the errors of energy.
        choices: Number of choices of least energy, the percentage in which predictions agree
            with measurements, and the mean extra energy in percent; None where there are none.
    """

    how: str
    series: Strings
    tokens: Array
    measured_us: Array
    predicted_us: Array
    half_width: Array
    baselines: Mapping[str, Array]
    errors: list[Errors]
    energy_note: str
    choices: tuple[int, float, float] | None = None
