"""What a serving process imports: the cost table, the price of an expert, and a MoE layer."""

from costprof.costmodel.table import CostTable
from costprof.runtime.kernel_cost_model import KernelCostModel
from costprof.runtime.moe import MoELayer

__all__ = ["CostTable", "KernelCostModel", "MoELayer"]
