"""The gate of a layer: that of its model where it is known, as its trace and `--gate` say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from costprof.core.errors import InputError
from costprof.costmodel.table import CostTable
from costprof.routing import Gate

_OF_MODEL: dict[str, dict[str, Any]] = {
    "DeepSeek-V3": {"score": "sigmoid", "n_group": 8, "topk_group": 4, "scaling": 2.5},
    "OLMoE-1B-7B": {"renormalise": False},
}
"""How the shipped models differ from a renormalised softmax, by name; see `routing.Gate`."""

_BIASED = ("DeepSeek-V3",)
"""Models that choose by scores plus a learned bias, which no config states."""

_KINDS: dict[str, type] = {
    "score": str,
    "renormalise": bool,
    "scaling": float,
    "n_group": int,
    "topk_group": int,
    "group_top": int,
}


def read_gate(given: Sequence[str]) -> dict[str, Any]:
    """Return `given` "name=value" texts as arguments of `Gate`.

    Raises:
        InputError: a gate has no such argument, or the value is of another kind.
    """
    found: dict[str, Any] = {}
    for text in given:
        name, _, value = text.partition("=")
        kind = _KINDS.get(name)
        try:
            if kind is None:
                raise ValueError
            found[name] = {"true": True, "false": False}[value] if kind is bool else kind(value)
        except (ValueError, KeyError):
            raise InputError(
                f"--gate {text} cannot be read",
                "nothing was routed",
                f"set one of {', '.join(_KINDS)}, as score=sigmoid or renormalise=false",
            ) from None
    return found


def layer_gate(
    table: CostTable, *, recorded: Mapping[str, Any] | None, given: Mapping[str, Any]
) -> Gate:
    """Return the gate of the layer that `table` prices.

    Args:
        table: Its MoE's name tells the model.
        recorded: What a trace says of the gate; None without a trace.
        given: What `--gate` says, which goes first.

    Raises:
        InputError: the trace is of another top-k, or lacks the bias its model chooses by; the gate
            does not fit the layer.
    """
    moe = table.moe
    stated = dict(recorded or {})
    top_k = stated.pop("top_k", moe.top_k)
    if top_k != moe.top_k:
        raise InputError(
            f"the trace is of a top-{top_k} gate, the table of a top-{moe.top_k} one",
            "nothing was routed",
            "name the table of this layer, or its --moe",
        )
    if moe.name in _BIASED and recorded is not None and "bias" not in stated:
        raise InputError(
            f"{moe.name} chooses experts by scores plus a bias, and the trace has none",
            "nothing was routed",
            f"record it as gate.bias [{table.n_experts}]",
        )
    return Gate(top_k=moe.top_k, **{**_OF_MODEL.get(moe.name, {}), **stated, **given})


def described(gate: Gate) -> dict[str, Any]:
    """Return what `gate` is as plain JSON values."""
    return {**{name: getattr(gate, name) for name in _KINDS}, "biased": gate.bias is not None}


def in_words(gate: Gate) -> str:
    """Return what `gate` chooses by, for a note."""
    biased = "biased " if gate.bias is not None else ""
    groups = f" over {gate.topk_group} of {gate.n_group} groups" if gate.n_group > 1 else ""
    return f"{biased}{gate.score} gate{groups}"
