"""A model's routed experts in the format their weights are stored in, whatever can be run here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from costprof.core.expert import ExpertClass, Quantisation
from costprof.profiler.model_config import quantisation_method
from costprof.profiler.models import spec_from_config


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMoe:
    """One MoE layer: `experts` of one class, of which a token chooses `top_k`."""

    name: str
    expert: ExpertClass
    experts: int
    top_k: int

    @property
    def precision(self) -> str:
        """Storage of the weights, as whole layers name it."""
        stored = self.expert.quantisation
        return self.expert.dtype if stored == "none" else stored


def stored_moe(config: Mapping[str, Any], name: str) -> StoredMoe:
    """Return the routed experts of the model that `config` (a Hugging Face config.json) describes.

    Formats nobody names here (8-bit AWQ, say) count as the dtype they are computed in.

    Raises:
        InputError: keys are missing or not numbers, or the model is dense.
    """
    spec, _ = spec_from_config(config, name=name)
    (moe,) = spec.moe
    routed = spec.experts["expert"].to_class()
    stored = _stored(config) or routed.quantisation
    return StoredMoe(
        name=name,
        expert=dataclasses.replace(routed, quantisation=stored),
        experts=sum(run.count for run in moe.experts),
        top_k=moe.top_k,
    )


def _stored(config: Mapping[str, Any]) -> Quantisation | None:
    """Return a format that can be priced and not run, where the config names one."""
    found = quantisation_method(config)
    if found is None:
        return None
    if found[0] == "mxfp4":
        return "mxfp4"
    blocks = config["quantization_config"].get("weight_block_size")
    return "fp8_block" if found[0] == "fp8" and blocks else None
