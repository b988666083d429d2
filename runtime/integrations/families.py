"""The routers in a transformers model, and the gate each family's router is.

A router is a module that returns `(logits [T, E], weights [T, k], indices [T, k])` and has a
`weight` [E, hidden] and a `top_k`. Facts: `models/*/modeling_*.py` of transformers 5.23 and 5.24.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from costprof.core.errors import InputError
from costprof.routing import Gate
from costprof.routing.gate import select

_NAME = re.compile(r"Top[kK]Router$")
_PROBE_ROWS = 32


def find_routers(model: nn.Module, names: Sequence[str] | None) -> dict[str, nn.Module]:
    """Return the routers of `model` by module name: those called `names`, or all it can find.

    Raises:
        InputError: there are none, none is named, or a module of that name does not exist.
    """
    modules = dict(model.named_modules())
    if names is not None:
        if isinstance(names, str) or not names:
            raise InputError(
                f"routers= is {names!r}",
                "nothing was attached",
                "give a list of module names, or None for all routers",
            )
        for name in names:
            if name not in modules:
                raise InputError(
                    f"the model has no module {name!r}",
                    "nothing was attached",
                    "use a name out of model.named_modules()",
                )
        return {name: modules[name] for name in names}
    found = {name: module for name, module in modules.items() if _is_router(module)}
    if not found:
        raise InputError(
            f"{type(model).__name__} has no top-k router",
            "nothing was attached",
            "name its router modules with routers=",
        )
    return found


def router_shape(name: str, router: nn.Module) -> tuple[int, int]:
    """Return (experts, top_k) of the router called `name`.

    Raises:
        InputError: it does not say.
    """
    weight, top_k = getattr(router, "weight", None), getattr(router, "top_k", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not isinstance(top_k, int):
        raise InputError(
            f"{name} ({type(router).__name__}) has no weight [experts, hidden] or no top_k",
            "nothing was attached",
            "name modules that are top-k routers",
        )
    return weight.shape[0], top_k


def gate_of(router: nn.Module) -> Gate:
    """Return the gate a router of a family known here computes, with its present bias.

    | router | gate |
    |---|---|
    | has `e_score_correction_bias` (DeepSeek-V3 and kin) | sigmoid, bias, groups, scaling |
    | gpt-oss, Mixtral | softmax, renormalised |
    | has `norm_topk_prob` (Qwen3-MoE, OLMoE and kin) | softmax, renormalised if it says so |

    `check_gate_of` tells whether a router really is what its attributes suggest.
    """
    top_k: int = router.top_k  # type: ignore[assignment]
    renormalise = bool(getattr(router, "norm_topk_prob", True))
    scaling = float(getattr(router, "routed_scaling_factor", 1.0))
    bias: Any = getattr(router, "e_score_correction_bias", None)
    if bias is None:
        return Gate(top_k=top_k, renormalise=renormalise, scaling=scaling)
    groups: Any = getattr(router, "num_group", getattr(router, "n_group", 1))
    chosen: Any = getattr(router, "topk_group", 1)
    return Gate(
        top_k=top_k,
        score="sigmoid",
        renormalise=renormalise,
        bias=bias,
        n_group=groups or 1,
        topk_group=chosen or 1,
        scaling=scaling,
    )


@torch.no_grad()
def check_gate_of(name: str, router: nn.Module, gate: Gate) -> None:
    """Check on 32 random rows that `gate` chooses and weighs as the router called `name` does.

    Weights may differ by two roundings of the type they come in. A router whose weights are not
    loaded yet (meta device) is not checked.

    Raises:
        InputError: it does not, or the router returns something else.
    """
    weight: Tensor = router.weight  # type: ignore[assignment]
    if weight.is_meta:
        return
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(_PROBE_ROWS, weight.shape[1], generator=generator)
    try:
        output = router.forward(probe.to(device=weight.device, dtype=weight.dtype))
    except TypeError as error:
        raise InputError(
            f"{name} ({type(router).__name__}) needs more than its rows: {error}",
            "what it computes cannot be checked, so no policy can be attached to it",
            "attach without a policy",
        ) from error
    logits, weights, indices = triple(name, output)
    plain = select(logits, gate)
    own = torch.zeros_like(plain.scores).scatter_(-1, indices.to(torch.int64), weights.float())
    ours = torch.zeros_like(plain.scores).scatter_(-1, plain.indices, plain.weights)
    tolerance = 4 * torch.finfo(weights.dtype).eps
    # Of two experts of equal logits, which short types often have, either may be chosen.
    tied = ((own > 0) != (ours > 0)).any(dim=-1)
    close = torch.allclose(own[~tied], ours[~tied], rtol=tolerance, atol=tolerance)
    allowed = _PROBE_ROWS // (4 if logits.element_size() < 4 else 16)
    if not close or int(tied.sum()) > allowed:
        raise InputError(
            f"{name} ({type(router).__name__}) does not weigh experts as {gate.score} top-k does",
            "no policy can be attached to it",
            "describe it with gate=, or attach without a policy",
        )


def triple(name: str, output: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return a router's output as (logits, weights, indices).

    Raises:
        InputError: it is something else.
    """
    if (
        isinstance(output, tuple)
        and len(output) == 3
        and all(isinstance(each, Tensor) and each.dim() == 2 for each in output)
        and output[1].shape == output[2].shape
        and not output[2].is_floating_point()
    ):
        return output
    raise InputError(
        f"{name} does not return (logits, weights, indices)",
        "its routing cannot be seen",
        "name modules that are top-k routers",
    )


def _is_router(module: nn.Module) -> bool:
    return any(_NAME.search(each.__name__) for each in type(module).__mro__)
