"""Whether what `attach` is given can be used."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from costprof.core.errors import InputError
from costprof.costmodel.table import CostTable
from costprof.routing import Gate
from costprof.runtime.integrations.families import router_shape

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")
_NOTHING_ATTACHED = "nothing was attached"


def check_arguments(model: Any, table: Any, gate: Any, keep: Any) -> None:
    """Check the kinds of `attach`'s arguments; the policy's is checked when it is set.

    Raises:
        InputError: one is of another kind.
    """
    if not isinstance(model, nn.Module):
        raise _not("model", model, "give a transformers model")
    if not isinstance(table, CostTable | Mapping):
        raise _not("table", table, "give a CostTable, or one per layer, {layer: table}")
    if gate is not None and not isinstance(gate, Gate):
        raise _not("gate", gate, "give a Gate, or None to read it off the routers")
    if isinstance(keep, bool) or not isinstance(keep, int) or keep < 0:
        raise _not("keep", keep, "give a number of records, 0 or more")


def check_policy(policy: Any) -> None:
    """Check that `policy` is one, or None.

    Raises:
        InputError: it is something else, such as a policy's class or name.
    """
    if policy is None:
        return
    if isinstance(policy, type) or not (hasattr(policy, "choose") and hasattr(policy, "neutral")):
        said = policy.__name__ if isinstance(policy, type) else repr(policy)
        raise InputError(
            f"{said} is not a policy",
            "nothing would be routed by it",
            "build one, as in Marginal(lam=0.02), or give None to observe",
        )


def tables_of(
    routers: Mapping[str, nn.Module], table: CostTable | Mapping[str | int, CostTable]
) -> dict[str, CostTable]:
    """Return the table of each router, checked to be of a layer like its own.

    Raises:
        InputError: a router has none, or one of a layer of another shape.
    """
    tables = {}
    for name, router in routers.items():
        number = _LAYER.search(name)
        each: Any = table
        if not isinstance(table, CostTable):
            each = table.get(name)
            if each is None and number is not None:
                each = table.get(int(number[1]))
        if each is None:
            raise InputError(
                f"there is no table for {name}",
                _NOTHING_ATTACHED,
                "give one per layer, by the router's module name or the layer's number",
            )
        if not isinstance(each, CostTable):
            raise _not(f"table for {name}", each, "give a CostTable")
        shape = router_shape(name, router)
        if shape != (each.n_experts, each.moe.top_k):
            raise InputError(
                f"{name} chooses {shape[1]} of {shape[0]} experts, "
                f"the table's {each.moe.name!r} {each.moe.top_k} of {each.n_experts}",
                _NOTHING_ATTACHED,
                "use the table (or its moe=) of this layer",
            )
        tables[name] = each
    return tables


def _not(name: str, value: Any, way_out: str) -> InputError:
    said = repr(value) if value is None or isinstance(value, int | float | str) else type(value)
    said = said.__name__ if isinstance(said, type) else said
    return InputError(f"{name} is {said}", _NOTHING_ATTACHED, way_out)
