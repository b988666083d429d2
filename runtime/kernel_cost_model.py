"""`KernelCostModel`: the price of one expert on one input shape, as a plain dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from costprof.core.errors import InputError
from costprof.costmodel.table import CostTable


class KernelCostModel:
    """Ask what an expert costs by the shape of its input; thin over `CostTable`.

    Attributes:
        table: The table behind it: tiers, energy sources and whole layers are priced there.
    """

    def __init__(
        self,
        data_path: str | Path,
        *,
        moe: str | None = None,
        allow_device_mismatch: bool = False,
    ) -> None:
        """Load the cost table at `data_path`; raises what `CostTable.load` raises."""
        self.table = CostTable.load(data_path, moe=moe, allow_device_mismatch=allow_device_mismatch)

    def get_cost(self, expert_id: int, input_shape: Sequence[int]) -> dict[str, float]:
        """Return the price of `expert_id` on one input.

        Args:
            expert_id: 0 … E - 1.
            input_shape: (tokens, d_model) or (batch, sequence, d_model).

        Returns:
            latency_us and energy_mj (active energy), each also with `_p05` and `_p95`; power_w;
            temp_rise_c (modelled); bytes and flops (compulsory, from shapes).

        Raises:
            InputError: no such expert, or a shape that is not the input of this expert.
        """
        shape = tuple(input_shape)
        whole = all(isinstance(size, int) and not isinstance(size, bool) for size in shape)
        if len(shape) not in (2, 3) or not whole or min(shape) < 0:
            raise InputError(
                f"input shape {shape}",
                "no token count can be read from it",
                "give (tokens, d_model) or (batch, sequence, d_model) of whole numbers",
            )
        d_model = self.table.expert_class(expert_id).d_model
        if shape[-1] != d_model:
            raise InputError(
                f"input shape {shape} ends in {shape[-1]}",
                f"expert {expert_id} takes {d_model} features",
                f"give a shape that ends in {d_model}",
            )
        tokens = shape[0] if len(shape) == 2 else shape[0] * shape[1]
        cost = self.table.cost(expert_id, tokens)
        return {
            "latency_us": cost.latency_us,
            "latency_us_p05": cost.latency_us_p05,
            "latency_us_p95": cost.latency_us_p95,
            "energy_mj": cost.energy_mj,
            "energy_mj_p05": cost.energy_mj_p05,
            "energy_mj_p95": cost.energy_mj_p95,
            "power_w": cost.power_w,
            "temp_rise_c": cost.temp_rise_c,
            "bytes": cost.bytes,
            "flops": cost.flops,
        }
