"""How a serving process is told what to do: a JSON file named by an environment variable."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from costprof.core.errors import InputError
from costprof.costmodel.table import CostTable
from costprof.routing import POLICIES, Objective, Scheduled, TopK
from costprof.routing.contract import Policy, Stage

VARIABLE = "COSTPROF_ROUTING_CONFIG"
_SHIPPED = "shipped:"
_KEYS = {"table", "moe", "allow_device_mismatch", "policy", "parameters", "by_stage"}
_OF_POLICY = {"policy", "parameters"}
_STAGES = get_args(Stage)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingConfig:
    """What the file said.

    Attributes:
        table: Prices of every layer's experts.
        policy: None only observes.
    """

    table: CostTable
    policy: Policy | None = None


def read_config(environment: Mapping[str, str]) -> ServingConfig | None:
    """Return the configuration `COSTPROF_ROUTING_CONFIG` names; None where it is not set.

    The file is a JSON object: `table`, the path of a cost table or `shipped:<model>`; `moe`, which
    of the MoEs at a path; `allow_device_mismatch`, true or false; `policy`, the name of a policy,
    in small letters, or null; `parameters`, the policy's, an objective as an object of its weights.
    Instead of the last two `by_stage` may have an object of both for each of the stages cool, warm,
    hot and critical; one left out is routed as the stage before, and cool cannot be left out. A
    relative path is relative to the file.

    Raises:
        InputError: no such file, no JSON object, or something unknown in it.
        TableError: the table cannot be used.
    """
    path = environment.get(VARIABLE)
    if not path:
        return None
    try:
        read = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{VARIABLE} names {path!r}, which cannot be read: {error}",
            "nothing is observed or routed",
            "name a JSON file, or unset the variable",
        ) from error
    if not isinstance(read, dict) or not isinstance(read.get("table"), str) or set(read) - _KEYS:
        raise InputError(
            f"{path} is not an object with a table and keys out of {', '.join(sorted(_KEYS))}",
            "nothing is observed or routed",
            "correct it",
        )
    return ServingConfig(
        table=_table(read, Path(path).parent),
        policy=_scheduled(read)
        if "by_stage" in read
        else policy_named(read.get("policy"), read.get("parameters") or {}),
    )


def policy_named(name: str | None, parameters: Mapping[str, Any]) -> Policy | None:
    """Return the policy called `name` with `parameters`; None for no name.

    Raises:
        InputError: there is no such policy, or it has no such parameters.
    """
    if name is None:
        return None
    kind: Any = POLICIES.get(str(name))
    if kind is None:
        raise InputError(
            f"there is no policy {name!r}",
            "nothing is observed or routed",
            f"use one of {', '.join(sorted(POLICIES))}, or null to observe",
        )
    if not isinstance(parameters, Mapping):
        raise InputError(
            f"the parameters {parameters!r} are no object of names and values",
            "nothing is observed or routed",
            'write them as {"lam": 0.05}',
        )
    try:
        given = {name: _parameter(name, value) for name, value in parameters.items()}
        policy: Policy = kind(**given)
    except TypeError as error:
        raise InputError(
            f"policy {name} does not take these parameters: {error}",
            "nothing is observed or routed",
            "correct them",
        ) from error
    return policy


def _scheduled(read: Mapping[str, Any]) -> Policy:
    stages = read["by_stage"]
    if (
        not isinstance(stages, dict)
        or "cool" not in stages
        or set(stages) - set(_STAGES)
        or not all(isinstance(each, dict) and set(each) <= _OF_POLICY for each in stages.values())
        or not _OF_POLICY.isdisjoint(read)
    ):
        raise InputError(
            f"by_stage is {json.dumps(stages)}"
            + ("" if _OF_POLICY.isdisjoint(read) else ", beside a policy for all stages"),
            "nothing is observed or routed",
            'write it as {"cool": {"policy": "topk"}, "hot": {"policy": "oea", "parameters": '
            f'{{"k0": 2}}}}}}, of {", ".join(_STAGES)}',
        )
    policies = {
        stage: policy_named(each.get("policy"), each.get("parameters") or {}) or TopK()
        for stage, each in stages.items()
    }
    return Scheduled.by_stage(**policies)


def _parameter(name: str, value: Any) -> Any:
    """What JSON has a list or an object for, as a policy takes it."""
    if name == "objective":
        if not isinstance(value, dict):
            raise InputError(
                f"the objective {value!r} is no object of weights",
                "nothing is observed or routed",
                'write it as {"energy": 1}',
            )
        return Objective.of(value)
    return tuple(value) if isinstance(value, list) else value


def _table(read: Mapping[str, Any], folder: Path) -> CostTable:
    name: str = read["table"]
    allow, moe = read.get("allow_device_mismatch", False), read.get("moe")
    if not isinstance(allow, bool) or not isinstance(moe, str | None):
        raise InputError(
            f"allow_device_mismatch is {json.dumps(allow)} and moe {json.dumps(moe)}",
            "nothing is observed or routed",
            "write true or false for the one and a name for the other, or leave them out",
        )
    if not name.startswith(_SHIPPED):
        return CostTable.load(folder / name, moe=moe, allow_device_mismatch=allow)
    if moe is not None:
        raise InputError(
            f"{name!r} names its MoE, and moe is {moe!r}",
            "nothing is observed or routed",
            f"leave moe out, or name {_SHIPPED + moe!r} instead",
        )
    return CostTable.shipped(name.removeprefix(_SHIPPED))
