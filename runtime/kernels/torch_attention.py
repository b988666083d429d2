"""One decode step of a grouped-query attention block in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def decode_attention(
    x: Tensor, w_qkv: Tensor, w_o: Tensor, k_cache: Tensor, v_cache: Tensor
) -> Tensor:
    """Each of T sequences attends with one new token over its own L cached positions.

    The last cached position is the new token's own: its key and value are written there, in
    place, before attending, as a serving engine does. Query heads share key/value heads in equal
    groups (Ainslie et al. 2023, arXiv 2305.13245). Positions are not rotated: a rotary embedding
    touches only the new token's heads, a 1/L-th of what the cache costs.

    Args:
        x: [T, d_model].
        w_qkv: [(H + 2·Hkv)·hd, d_model], rows of queries first, then keys, then values.
        w_o: [d_model, H·hd].
        k_cache: [T, Hkv, L, hd], changed in place at L - 1.
        v_cache: [T, Hkv, L, hd], changed in place at L - 1.

    Returns:
        [T, d_model].
    """
    tokens, kv_heads, _, head_dim = k_cache.shape
    heads = w_o.shape[1] // head_dim
    projected = F.linear(x, w_qkv).view(tokens, heads + 2 * kv_heads, head_dim)
    query = projected[:, :heads]
    key = projected[:, heads : heads + kv_heads]
    value = projected[:, heads + kv_heads :]
    with torch.no_grad():
        k_cache[:, :, -1] = key
        v_cache[:, :, -1] = value
    attended = F.scaled_dot_product_attention(
        query.unsqueeze(2), k_cache, v_cache, enable_gqa=heads != kv_heads
    )
    return F.linear(attended.reshape(tokens, heads * head_dim), w_o)
