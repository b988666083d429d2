"""The cost table at run time: load it, price an expert, price a layer from its token counts.

Needs torch, numpy and pyarrow only, so that an inference server can load it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from costprof.core.device import DeviceFingerprint, detect_device, software_versions
from costprof.core.errors import InputError, TableError
from costprof.core.expert import ExpertClass
from costprof.core.work import expert_weight_bytes
from costprof.costmodel.compatibility import TableDriftWarning, check_device, warn_of_drift
from costprof.costmodel.config_choice import ConfigChoice, check_energy_weight, config_choice
from costprof.costmodel.curves import read_classes
from costprof.costmodel.lookup import DenseLookup, build_lookup
from costprof.costmodel.manifest import Manifest
from costprof.costmodel.observation import Observation
from costprof.costmodel.rows import TABLE_SCHEMA
from costprof.costmodel.shipped import shipped_table
from costprof.costmodel.table_calibration import (
    Prediction,
    corrected_manifest,
    corrected_rows,
    fit_table_scales,
)
from costprof.costmodel.tablefile import read_table, write_table

Quantity = Literal["latency_us", "energy_mj"]

__all__ = [
    "TABLE_SCHEMA",
    "ConfigChoice",
    "CostTable",
    "ExpertConstants",
    "ExpertCost",
    "LayerCost",
    "Observation",
    "Quantity",
    "write_table",
]


@dataclass(frozen=True, slots=True)
class ExpertCost:
    """Price of one expert on its own: median and 90 % interval of latency and active energy."""

    latency_us: float
    latency_us_p05: float
    latency_us_p95: float
    energy_mj: float
    energy_mj_p05: float
    energy_mj_p95: float
    power_w: float
    temp_rise_c: float
    bytes: float
    flops: float
    tier: str
    energy_source: str


@dataclass(frozen=True, slots=True)
class LayerCost:
    """Median latency and active energy, both float64 of one shape on the counts' device."""

    latency_us: Tensor
    energy_mj: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class ExpertConstants:
    """What of each expert does not depend on its tokens; both [E] float64.

    Attributes:
        weight_bytes: Stored bytes of its weights.
        heat_c_per_mj: Modelled rise in temperature, kelvin per mJ it takes; 0 where its energy is
            not known.
    """

    weight_bytes: Tensor
    heat_c_per_mj: Tensor


class CostTable:
    """Prices of the experts of one MoE on one device.

    Attributes:
        rows: All rows of the table, of `TABLE_SCHEMA`.
        manifest: Where the table comes from and how well it fits.
        moe: The MoE priced: name, top_k and the class id of each of its E experts.
        n_experts: E.
        expert_weight_bytes: [E] float64, stored bytes of each expert's weights.
    """

    def __init__(self, rows: pa.Table, manifest: Manifest, *, moe: str | None = None) -> None:
        """Price `moe` (the only one where None) from `rows` of `TABLE_SCHEMA`.

        Raises:
            TableError: the MoE is unknown, or an expert's class has no rows.
        """
        self.rows = rows
        self.manifest = manifest
        self.moe = manifest.moe(moe)
        if not self.moe.class_of_expert:
            raise TableError(
                f"the MoE {self.moe.name!r} of the table has no experts",
                "nothing can be priced",
                "fit a dataset of a sweep that names its experts",
            )
        self._classes = read_classes(rows, self.moe.class_of_expert)
        self._lookups: dict[torch.device, DenseLookup] = {}
        self._constants: dict[torch.device, ExpertConstants] = {}
        self._lookup = build_lookup(self._classes, self.moe.class_of_expert, manifest.compositions)
        self._priced = self._lookup.priced()
        self.n_experts = len(self.moe.class_of_expert)
        self.expert_weight_bytes = torch.tensor(
            [expert_weight_bytes(self.expert_class(e)) for e in range(self.n_experts)],
            dtype=torch.float64,
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        moe: str | None = None,
        device: DeviceFingerprint | None = None,
        allow_device_mismatch: bool = False,
    ) -> CostTable:
        """Load the table at `path` for `device` (None: the one present).

        A table measured on a CPU is compared with the CPU, also on a machine that has a GPU.
        Another driver, power limit, core count, torch or triton raises a `TableDriftWarning`.

        Raises:
            TableError: no such file, damaged, no cost table, a later schema, or no such MoE.
            DeviceMismatchError: it was measured on another device model, and
                `allow_device_mismatch` is False.
        """
        file = read_table(path)
        manifest = file.manifest
        present = device or detect_device(manifest.device.kind if _on_cpu(manifest) else None)
        same_model = check_device(manifest.device, present, allow=allow_device_mismatch)
        if same_model:
            warn_of_drift(manifest, present, software_versions())
        return cls(file.rows, manifest, moe=moe)

    @classmethod
    def shipped(cls, moe: str) -> CostTable:
        """Return the predictions that come with the package, for the named model `moe`.

        They are for an NVIDIA H200 under vLLM, of a model fitted to public measurements, and serve
        on every device until a table measured there replaces them: which experts a router prefers
        depends on ratios of prices more than on their size. Elsewhere than on an H200 a
        `TableDriftWarning` says so.

        Raises:
            TableError: there are no predictions for `moe`.
        """
        file = read_table(shipped_table())
        present = detect_device(None)
        if not check_device(file.manifest.device, present, allow=True):
            warnings.warn(
                f"prices are predictions for {file.manifest.device.name}, not for {present.name}",
                TableDriftWarning,
                stacklevel=2,
            )
        return cls(file.rows, file.manifest, moe=moe)

    def expert_class(self, expert: int) -> ExpertClass:
        """Return the class of `expert`.

        Raises:
            InputError: there is no such expert.
        """
        return self._classes[self._class_id(expert)].expert

    def cost(self, expert: int, tokens: int) -> ExpertCost:
        """Return the price of running `expert` alone on `tokens` tokens.

        Raises:
            InputError: there is no such expert, or `tokens` is negative.
        """
        if tokens < 0:
            raise InputError(
                f"tokens is {tokens}", "nothing was priced", "give a count of at least 0"
            )
        curve = self._classes[self._class_id(expert)].best(tokens)
        value = {name: float(curve.at(name, tokens)) for name in curve.columns}
        latency, energy = value["latency_us_p50"], value["energy_mj_p50"]
        return ExpertCost(
            latency_us=latency,
            latency_us_p05=min(value["latency_us_p05"], latency),
            latency_us_p95=max(value["latency_us_p95"], latency),
            energy_mj=energy,
            energy_mj_p05=min(value["energy_mj_p05"], energy),
            energy_mj_p95=max(value["energy_mj_p95"], energy),
            power_w=value["power_w"],
            temp_rise_c=value["temp_rise_c"],
            bytes=value["bytes"],
            flops=value["flops"],
            tier=curve.tier_at(tokens),
            energy_source=curve.energy_source_at(tokens),
        )

    def best_config(
        self, expert: int, tokens: int, *, energy_weight: float = 0.0
    ) -> dict[str, int]:
        """Return the tile config under which `expert` does best on `tokens`; empty without tiles.

        `energy_weight` 0 asks for least latency, which is what prices are of, and 1 for least
        energy; between, the config of least weighted sum of both as shares of their least. Under
        a *modelled* energy the two rank much alike. In a hot path use `config_choice`.

        Raises:
            InputError: there is no such expert, `tokens` is negative, or the weight is not in
                [0, 1].
        """
        if tokens < 0:
            raise InputError(
                f"tokens is {tokens}", "no config was chosen", "give a count of at least 0"
            )
        check_energy_weight(energy_weight)
        curves = self._classes[self._class_id(expert)]
        best = curves.best_index(np.array([float(max(tokens, 1))]), energy_weight)[0]
        return dict(curves.curves[best].config)

    def config_choice(self, expert: int, *, energy_weight: float = 0.0) -> ConfigChoice:
        """Return `best_config` of `expert` for all token counts, looked up in constant time.

        Raises:
            InputError: there is no such expert, or the weight is not in [0, 1].
        """
        return config_choice(self._classes[self._class_id(expert)], energy_weight)

    def kernel_name(self, expert: int) -> str:
        """Return the `module:function` that was measured for `expert`.

        Raises:
            InputError: there is no such expert.
        """
        return self._classes[self._class_id(expert)].kernel

    def expert_constants(self, device: torch.device | str) -> ExpertConstants:
        """Return bytes and heat of all experts on `device`; kept there after the first call."""
        device = torch.device(device)
        if device not in self._constants:
            heat = {}
            for expert, class_id in enumerate(self.moe.class_of_expert):
                if class_id not in heat:
                    cost = self.cost(expert, 1)
                    known = cost.energy_mj > 0 and np.isfinite(cost.temp_rise_c)
                    heat[class_id] = cost.temp_rise_c / cost.energy_mj if known else 0.0
            of_expert = [heat[class_id] for class_id in self.moe.class_of_expert]
            with torch.inference_mode(False):  # kept, and maybe needed with gradients later
                self._constants[device] = ExpertConstants(
                    weight_bytes=self.expert_weight_bytes.to(device),
                    heat_c_per_mj=torch.tensor(of_expert, dtype=torch.float64, device=device),
                )
        return self._constants[device]

    def expert_costs(self, counts: Tensor) -> LayerCost:
        """Return what each expert adds to a layer: [..., E] for integer `counts` [..., E].

        0 where the count is 0. The layer's base is not in it.
        """
        return _split(self._lookup_for(counts, integer=True).experts(counts))

    def check_priced(self, quantities: Sequence[Quantity]) -> None:
        """Check that every price has these parts, finite and above 0, as found when it was loaded.

        Raises:
            TableError: a part is missing.
        """
        for name in quantities:
            if name not in self._priced:
                raise TableError(
                    f"the table has prices whose {name} is 0 or not finite",
                    f"nothing can be routed by {name}",
                    "use another objective or a table that measured it",
                )

    def layer_cost(self, counts: Tensor) -> LayerCost:
        """Return the price [...] of a layer whose expert `e` gets `counts[..., e]` tokens.

        The base of the composition is paid by an empty layer too.

        Raises:
            InputError: `counts` are not integers or their last size is not E.
        """
        return _split(self._lookup_for(counts, integer=True).layer(counts))

    def expected_layer_cost(self, expected_counts: Tensor) -> LayerCost:
        """Return the price [...] of a layer given real-valued counts [..., E]; differentiable.

        Piecewise linear between whole counts, at which it equals `layer_cost`.

        Raises:
            InputError: `expected_counts` are not floating or their last size is not E.
        """
        return _split(
            self._lookup_for(expected_counts, integer=False).expected_layer(expected_counts)
        )

    def calibrated(self, observations: Sequence[Observation]) -> CostTable:
        """Return this table with all prices corrected by `observations` of the machine it serves.

        Each class has a factor on latency and one on energy, shrunk towards that of all and that
        towards 1 while observations are few; intervals widen by the doubt of the factor. Tiers
        stay; a note of the manifest says that the table was calibrated. Nothing is fitted again.
        See `costprof.costmodel.table_calibration`. Without observations this table comes back.

        Raises:
            InputError: an observation is of no expert or layer of this MoE, or of none that costs.
        """
        if not observations:
            return self
        predictions = [self._predicted(observation) for observation in observations]
        limit_w = self.manifest.device.power_limit_w
        scales = fit_table_scales(predictions, observations, limit_w)
        rows = corrected_rows(self.rows, scales)
        return CostTable(rows, corrected_manifest(self.manifest, scales), moe=self.moe.name)

    def _predicted(self, observation: Observation) -> Prediction:
        if observation.counts is None:
            expert, tokens = observation.expert or 0, observation.tokens or 0
            cost = self.cost(expert, tokens)
            return Prediction(self._class_id(expert), cost.latency_us, cost.energy_mj)
        layer = self.layer_cost(torch.tensor(observation.counts, dtype=torch.int64))
        ran = {self._class_id(e) for e, count in enumerate(observation.counts) if count}
        only = ran.pop() if len(ran) == 1 else ""
        return Prediction(only, layer.latency_us.item(), layer.energy_mj.item())

    def lookup(self, device: torch.device) -> DenseLookup:
        """Return all prices as tensors on `device`, copied there once."""
        if device == self._lookup.values.device:
            return self._lookup
        if device not in self._lookups:
            self._lookups[device] = self._lookup.to(device)
        return self._lookups[device]

    def _class_id(self, expert: int) -> str:
        if not 0 <= expert < self.n_experts:
            raise InputError(
                f"expert {expert} of {self.n_experts}",
                "it cannot be priced",
                f"use 0 … {self.n_experts - 1}",
            )
        return self.moe.class_of_expert[expert]

    def _lookup_for(self, counts: Tensor, *, integer: bool) -> DenseLookup:
        """Return the lookup on the device of `counts`, which must be [..., E] of the right kind."""
        if counts.dim() == 0 or counts.shape[-1] != self.n_experts:
            raise InputError(
                f"counts have shape {tuple(counts.shape)}",
                f"they do not fit the {self.n_experts} experts of {self.moe.name}",
                f"give counts of shape [..., {self.n_experts}]",
            )
        if counts.is_floating_point() is integer or counts.dtype is torch.bool:
            raise InputError(
                f"counts are {counts.dtype}",
                "they cannot be priced",
                f"give {'integers' if integer else 'floating-point numbers'} here",
            )
        return self.lookup(counts.device)


def _on_cpu(manifest: Manifest) -> bool:
    return manifest.device.kind == "cpu"


def _split(prices: Tensor) -> LayerCost:
    latency_us, energy_mj = prices.unbind(-1)
    return LayerCost(latency_us, energy_mj)
