"""Random transformers MoEs of a few thousand parameters, one per family, and their tables."""

from __future__ import annotations

from typing import Any

import torch

from costprof.core.device import DeviceFingerprint
from costprof.core.expert import ExpertClass, Kernel
from costprof.costmodel.manifest import Manifest, MoeSpec
from costprof.costmodel.rows import TableRow, rows_table
from costprof.costmodel.table import CostTable

N_EXPERTS, TOP_K, LAYERS = 16, 4, 2
_COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "num_experts_per_tok": TOP_K,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def config_of(family: str) -> Any:
    import transformers

    if family == "mixtral":
        return transformers.MixtralConfig(**_COMMON, num_local_experts=N_EXPERTS)
    if family == "qwen3_moe":
        return transformers.Qwen3MoeConfig(
            **_COMMON,
            num_experts=N_EXPERTS,
            moe_intermediate_size=16,
            head_dim=16,
            norm_topk_prob=True,
        )
    if family == "olmoe":
        return transformers.OlmoeConfig(**_COMMON, num_experts=N_EXPERTS, norm_topk_prob=False)
    if family == "deepseek_v3":
        return transformers.DeepseekV3Config(
            **_COMMON,
            n_routed_experts=N_EXPERTS,
            moe_intermediate_size=16,
            first_k_dense_replace=0,
            n_group=4,
            topk_group=2,
            q_lora_rank=16,
            kv_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=8,
            v_head_dim=16,
        )
    return transformers.GptOssConfig(
        **_COMMON, num_local_experts=N_EXPERTS, head_dim=16, layer_types=["full_attention"] * LAYERS
    )


FAMILIES = ("mixtral", "qwen3_moe", "olmoe", "deepseek_v3", "gpt_oss")


def tiny_moe(family: str, *, dtype: torch.dtype = torch.float32, experts: str = "eager") -> Any:
    """Return a model whose routers and experts have random weights large enough to matter."""
    import transformers

    config = config_of(family)
    config._experts_implementation = experts
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "gate.weight" in name or "router" in name or "experts" in name:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
            elif "e_score_correction_bias" in name:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.05)
    return model.to(dtype).eval()


def flat_table(
    n_experts: int = N_EXPERTS,
    top_k: int = TOP_K,
    *,
    wake_us: float = 50.0,
    row_us: float = 0.5,
    name: str = "tiny",
) -> CostTable:
    """Return a table where each of the experts costs `wake_us` and `row_us` a row."""
    expert = ExpertClass(d_model=32, d_ff=16, dtype="float32")
    rows = []
    for tokens in (1, 2, 4, 8, 16, 64, 256):
        us = wake_us + row_us * tokens
        rows.append(
            TableRow(
                expert=expert,
                kernel=Kernel(name="kernels:expert"),
                tokens=tokens,
                latency_us=(us, us, us),
                energy_mj=(2 * us, 2 * us, 2 * us),
                power_w=20.0,
                temp_rise_c=0.5,
            )
        )
    moe = MoeSpec(name=name, top_k=top_k, class_of_expert=(rows[0].class_id,) * n_experts)
    device = DeviceFingerprint(kind="cpu", name="chosen prices")
    return CostTable(rows_table(rows), Manifest(device=device, moes=(moe,)))
