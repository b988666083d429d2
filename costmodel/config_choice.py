"""Which tile config to launch at how many tokens: worked out once, then an index into a list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from costprof.core.errors import InputError
from costprof.costmodel.curves import ClassCurves

DENSE_TOKENS = 512
"""Token counts up to here are looked up one by one, larger ones in eight buckets an octave."""

_STEPS = 8


@dataclass(frozen=True, slots=True)
class ConfigChoice:
    """The best config at every token count.

    Attributes:
        configs: The configs that are best somewhere.
        dense: Position in `configs` at 0 … `DENSE_TOKENS` tokens.
        sparse: Position in each bucket above (see `bucket_tokens`); beyond the last, the last.
    """

    configs: tuple[Mapping[str, int], ...]
    dense: tuple[int, ...]
    sparse: tuple[int, ...]

    def __call__(self, tokens: int) -> Mapping[str, int]:
        """Return the config for `tokens`, a number the host knows; no device is asked."""
        if tokens <= DENSE_TOKENS:
            return self.configs[self.dense[max(tokens, 0)]]
        # Octave and its eighth from the bits of the number: exact, and no logarithm.
        octave = tokens.bit_length() - DENSE_TOKENS.bit_length()
        eighth = (tokens >> (tokens.bit_length() - 1 - _STEP_BITS)) - _STEPS
        return self.configs[self.sparse[min(octave * _STEPS + eighth, len(self.sparse) - 1)]]


_STEP_BITS = _STEPS.bit_length() - 1


def bucket_tokens(index: int) -> int:
    """Return the first token count of bucket `index` above `DENSE_TOKENS`: eight to an octave."""
    octave, eighth = divmod(index, _STEPS)
    return (DENSE_TOKENS << octave) * (_STEPS + eighth) // _STEPS


def config_choice(curves: ClassCurves, energy_weight: float = 0.0) -> ConfigChoice:
    """Work out the choice of one class; see `CostTable.best_config` for the weight.

    A bucket takes the config that is best at its first token count.

    Raises:
        InputError: the weight is not in [0, 1].
    """
    check_energy_weight(energy_weight)
    buckets = [0]
    while bucket_tokens(buckets[-1]) < curves.max_tokens:
        buckets.append(len(buckets))
    few = np.maximum(np.arange(DENSE_TOKENS + 1), 1).astype(np.float64)
    many = np.array([bucket_tokens(index) for index in buckets], dtype=np.float64)
    dense = curves.best_index(few, energy_weight).tolist()
    sparse = curves.best_index(many, energy_weight).tolist()
    used = sorted({*dense, *sparse})
    position = {curve: number for number, curve in enumerate(used)}
    return ConfigChoice(
        configs=tuple(dict(curves.curves[curve].config) for curve in used),
        dense=tuple(position[curve] for curve in dense),
        sparse=tuple(position[curve] for curve in sparse),
    )


def check_energy_weight(weight: float) -> None:
    """Raise InputError unless `weight` is in [0, 1]."""
    if not 0.0 <= weight <= 1.0:
        raise InputError(
            f"energy_weight is {weight}",
            "no config was chosen",
            "give a share between 0 (latency alone) and 1 (energy alone)",
        )
