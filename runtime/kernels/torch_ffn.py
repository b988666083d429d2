"""Feed-forward experts and their parts in plain torch: the kernels every machine can run.

Shapes: `x` [T, d_model]; `w1` [W, d_model] with W = 2·d_ff for SwiGLU (gate rows first, then up)
or d_ff for ReLU; `w2` [d_model, d_ff]. Outputs have the dtype of `x`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def swiglu(x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """Whole SwiGLU expert, `w2 (silu(gate x) ⊙ up x)` (Shazeer 2020, arXiv 2002.05202)."""
    return F.linear(silu_mul(F.linear(x, w1)), w2)


def relu(x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """Whole ReLU expert, `w2 relu(w1 x)`."""
    return F.linear(F.relu(F.linear(x, w1)), w2)


def fc1(x: Tensor, w1: Tensor) -> Tensor:
    """First projection, [T, d_model] → [T, W]."""
    return F.linear(x, w1)


def fc2(h: Tensor, w2: Tensor) -> Tensor:
    """Second projection, [T, d_ff] → [T, d_model]."""
    return F.linear(h, w2)


def silu_mul(h: Tensor) -> Tensor:
    """SwiGLU's activation: [T, 2·d_ff] → [T, d_ff]."""
    gate, up = h.chunk(2, dim=-1)
    return F.silu(gate) * up


def relu_activation(h: Tensor) -> Tensor:
    """ReLU, [T, d_ff] → [T, d_ff]."""
    return F.relu(h)
