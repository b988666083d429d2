"""Read a Hugging Face `config.json`: many families, several names for one thing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from costprof.core.errors import InputError

_CONSEQUENCE = "no sweep can be made of it"
# Bits a weight takes with its share of the scales, where the method alone decides it.
_METHOD_BITS = {"fp8": 8.0, "mxfp4": 4.25, "nvfp4": 4.5}


class ConfigReader:
    """Checked look-ups in the part of a config that describes the language model.

    `config` is that part: the whole file, or its `text_config` for models of several modalities.
    """

    def __init__(self, config: Mapping[str, Any], name: str) -> None:
        nested = config.get("text_config")
        self.config: Mapping[str, Any] = (
            {**config, **nested} if isinstance(nested, Mapping) else config
        )
        self.name = name

    def has(self, key: str) -> bool:
        """Say if `key` is there and not null."""
        return self.config.get(key) is not None

    def text(self, keys: Sequence[str]) -> str | None:
        """Return the first of `keys` that is a text."""
        found = (self.config.get(key) for key in keys)
        return next((value for value in found if isinstance(value, str)), None)

    def optional_number(self, keys: Sequence[str]) -> int | None:
        """Return the first of `keys` that is there, None if none is, 0 where it says 0.

        Raises:
            InputError: it is no whole number of at least 0.
        """
        for key in keys:
            value = self.config.get(key)
            # Some configs list the value of every layer.
            if isinstance(value, list) and value and all(item == value[0] for item in value):
                value = value[0]
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise InputError(
                    f"{self.name}: {key} is {value!r:.60}, not one whole number",
                    _CONSEQUENCE,
                    "write the experts as a sweep file, see docs/sweep.md",
                )
            return value
        return None

    def number(self, keys: Sequence[str], *, dense_if_missing: bool = False) -> int:
        """Return the first of `keys` that is there, as a number of at least 1.

        Raises:
            InputError: none is there (a dense model, with `dense_if_missing`), or it is no
                number of at least 1.
        """
        value = self.optional_number(keys)
        if value is None or (value == 0 and dense_if_missing):
            if dense_if_missing:
                fact = f"{self.name} is a dense model: none of {', '.join(keys)} says otherwise"
                way_out = "give the config of a Mixture-of-Experts model"
            else:
                fact = f"{self.name} has no {' or '.join(keys)}"
                way_out = "give a complete config.json, or write a sweep file (docs/sweep.md)"
            raise InputError(fact, _CONSEQUENCE, way_out)
        if value == 0:
            raise InputError(
                f"{self.name}: {' or '.join(keys)} is 0", _CONSEQUENCE, "correct the config"
            )
        return value


def quantisation_method(config: Mapping[str, Any]) -> tuple[str, float] | None:
    """Return how the weights are stored, and in how many bits each (0: not stated), or None."""
    stated = config.get("quantization_config")
    if not isinstance(stated, Mapping):
        return None
    method = str(stated.get("quant_method", "unnamed"))
    bits = stated.get("bits", stated.get("w_bit", _METHOD_BITS.get(method, 0.0)))
    return method, float(bits) if isinstance(bits, int | float) else 0.0
