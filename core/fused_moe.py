"""What vLLM and SGLang call the tile parameters of their fused MoE kernel."""

from __future__ import annotations

FUSED_MOE_NAMES = {
    "BLOCK_M": "BLOCK_SIZE_M",
    "BLOCK_N": "BLOCK_SIZE_N",
    "BLOCK_K": "BLOCK_SIZE_K",
    "GROUP_M": "GROUP_SIZE_M",
    "num_warps": "num_warps",
    "num_stages": "num_stages",
}
"""Theirs by ours: what each of their configs has. Some may have SPLIT_K too; ours have none."""
