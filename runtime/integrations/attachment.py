"""`attach` and `detach`: see, and change, how a transformers model routes its tokens."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from costprof.core.errors import InputError
from costprof.costmodel.table import CostTable
from costprof.routing import Gate, Rows, SystemState, route
from costprof.routing.contract import Policy
from costprof.runtime.integrations.batch import Batch, describe, unknown
from costprof.runtime.integrations.families import (
    check_gate_of,
    find_routers,
    gate_of,
    router_shape,
    triple,
)
from costprof.runtime.integrations.records import (
    LayerRecord,
    Recorder,
    RouterBypassedWarning,
    Summary,
)

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


def attach(
    model: nn.Module,
    table: CostTable | Mapping[str | int, CostTable],
    policy: Policy | None = None,
    *,
    gate: Gate | None = None,
    routers: Sequence[str] | None = None,
    keep: int = 4096,
) -> Attached:
    """Watch the routers of a transformers `model`, and route by `policy` where one is given.

    The modules stay the model's own, in their places: forward hooks are put on them, and a hook on
    the model notes which rows of a batch are padding, prompt or decode. So parameters, state dict,
    router-logit capture and `generate` are as before. Without a policy, and with a neutral one,
    outputs are bit for bit the model's own.

    With a policy, rows it leaves alone keep the model's own experts and weights, bit for bit;
    slots it empties, and padding rows, get weight 0 at an expert that is active anyway.

    Args:
        model: Mixtral, Qwen3-MoE, OLMoE, DeepSeek-V3, gpt-oss, or any other whose routers return
            `(logits, weights, indices)`.
        table: Prices of every layer's experts; or one per layer, by the router's module name or by
            the layer's number.
        policy: What may change the choice of experts; None only records.
        gate: How all routers turn logits into weights; None: as their family does, checked on
            random rows.
        routers: Module names of the routers; None: every module whose class is a `…TopKRouter`.
        keep: How many records `Attached.records` holds at most.

    Raises:
        InputError: no router, one attached already, a layer without a fitting table, or a gate
            that is not the router's. Nothing is attached then.
    """
    found = find_routers(model, routers)
    for name, router in found.items():
        if any(isinstance(hook, _LayerHook) for hook in router._forward_hooks.values()):
            raise InputError(
                f"{name} is attached already",
                "its batches would be recorded and changed twice",
                "detach the model first",
            )
    return Attached(model, found, _tables_of(found, table), policy=policy, gate=gate, keep=keep)


def detach(model: nn.Module) -> None:
    """Take off what `attach` put on `model`; without effect where nothing is attached."""
    for attached in {id(hook.attached): hook.attached for hook in _hooks(model)}.values():
        attached.detach()


class Attached:
    """An attached model; `with attach(...) as attached:` detaches at the end.

    Attributes:
        state: What the machine is doing, told to the policy; may be replaced between calls.
        batch_invariant: Route every row by itself, whatever the policy.
        tables: Prices by router module name.
    """

    def __init__(
        self,
        model: nn.Module,
        routers: Mapping[str, nn.Module],
        tables: Mapping[str, CostTable],
        *,
        policy: Policy | None,
        gate: Gate | None,
        keep: int,
    ) -> None:
        """Hook `model` and its `routers`; see `attach`, which checks that the tables fit."""
        self.state = SystemState()
        self.batch_invariant = False
        self.tables = dict(tables)
        self._routers = dict(routers)
        self._gate = gate
        self._gates_checked = False
        self.policy = policy
        self._recorder = Recorder(self.tables, keep=keep)
        self._history: dict[str, Any] = {}
        self._batches = 0
        self._called = False
        self._batch: Batch | None = None
        self._parameters = list(inspect.signature(model.forward).parameters)
        self._handles = [
            model.register_forward_pre_hook(_BeforeModel(self), with_kwargs=True),
            model.register_forward_hook(_AfterModel(self), always_call=True),
            *(r.register_forward_hook(_LayerHook(self, name)) for name, r in routers.items()),
        ]

    @property
    def policy(self) -> Policy | None:
        """What may change the choice of experts; may be replaced between calls.

        Raises:
            InputError: when set for the first time, if the gate is not the routers'.
        """
        return self._policy

    @policy.setter
    def policy(self, policy: Policy | None) -> None:
        if policy is not None and not self._gates_checked:
            for name, router in self._routers.items():
                check_gate_of(name, router, self._gate or gate_of(router))
            self._gates_checked = True
        self._policy = policy

    @property
    def records(self) -> list[LayerRecord]:
        """The last layer calls, oldest first; priced when asked for."""
        return self._recorder.records()

    def summary(self, *, is_prefill: bool | None = None) -> Summary:
        """Return sums over all prefill calls, decode calls, or (None) both."""
        return self._recorder.summary(is_prefill=is_prefill)

    def detach(self) -> None:
        """Leave the model as it was found; what was recorded stays readable."""
        for handle in self._handles:
            handle.remove()
        self._batch = None

    def __enter__(self) -> Attached:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()

    def before_model(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Note what a forward call says of its rows."""
        arguments = dict(zip(self._parameters, args, strict=False)) | dict(kwargs)
        self._called = False
        self._batch = describe(arguments)

    def after_model(self, *, finished: bool) -> None:
        """Forget the batch, also after an error."""
        self._batch = None
        self._batches += 1
        if finished and not self._called:
            warnings.warn(
                "the model ran without calling its routers; nothing was recorded or changed; "
                "turn off kernels that replace whole MoE layers",
                RouterBypassedWarning,
                stacklevel=2,
            )

    def after_router(
        self, layer: str, router: nn.Module, output: Any
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Record what the router of `layer` decided; return what it shall have decided instead."""
        logits, weights, indices = triple(layer, output)
        self._called = True
        batch = self._batch
        if batch is None or len(batch) != logits.shape[0]:
            batch = unknown(logits)
        changed = self._route(layer, router, (logits, weights, indices), batch)
        self._recorder.add(
            layer,
            batch=self._batches,
            is_prefill=batch.is_prefill,
            given=indices if changed is None else changed[1],
            chosen=indices,
            gate_mass_lost=None if changed is None else changed[2],
        )
        return None if changed is None else (logits, changed[0], changed[1])

    def _route(
        self,
        layer: str,
        router: nn.Module,
        own: tuple[Tensor, Tensor, Tensor],
        batch: Batch,
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return weights, indices [T, k] and mean gate mass lost; None to leave all as it is."""
        if self.policy is None or self.policy.neutral or self.batch_invariant:
            return None
        logits, weights, indices = own
        rows = _on(batch.rows, logits.device)
        routed = route(
            logits,
            table=self.tables[layer],
            gate=self._gate or gate_of(router),
            policy=self.policy,
            rows=rows,
            state=self.state,
            history=self._history.get(layer),
        )
        self._history[layer] = routed.history
        same = (routed.indices.sort(dim=-1).values == indices.sort(dim=-1).values).all(dim=-1)
        keeps = (same & routed.used.all(dim=-1)).unsqueeze(-1)
        lost = routed.gate_mass_lost.sum() / rows.real.sum().clamp_min(1)
        return (
            torch.where(keeps, weights, routed.weights.to(weights.dtype)),
            torch.where(keeps, indices, routed.indices.to(indices.dtype)),
            lost,
        )


class _Hook:
    """A hook of ours; knows to which attachment it belongs."""

    def __init__(self, attached: Attached) -> None:
        self.attached = attached


class _BeforeModel(_Hook):
    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.attached.before_model(args, kwargs)


class _AfterModel(_Hook):
    def __call__(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.attached.after_model(finished=output is not None)


class _LayerHook(_Hook):
    def __init__(self, attached: Attached, layer: str) -> None:
        super().__init__(attached)
        self.layer = layer

    def __call__(self, router: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return self.attached.after_router(self.layer, router, output)


def _hooks(model: nn.Module) -> Iterator[_Hook]:
    for module in model.modules():
        hooks: list[Any] = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        yield from (hook for hook in hooks if isinstance(hook, _Hook))


def _on(rows: Rows, device: torch.device) -> Rows:
    if rows.real.device == device:
        return rows
    return Rows(
        real=rows.real.to(device),
        sequence=rows.sequence.to(device),
        position=rows.position.to(device),
        is_prefill=rows.is_prefill.to(device),
        distinct=rows.distinct,
    )


def _tables_of(
    routers: Mapping[str, nn.Module], table: CostTable | Mapping[str | int, CostTable]
) -> dict[str, CostTable]:
    """Return the table of each router, checked to be of a layer like its own."""
    tables = {}
    for name, router in routers.items():
        number = _LAYER.search(name)
        if isinstance(table, CostTable):
            each: CostTable | None = table
        else:
            each = table.get(name) or (table.get(int(number[1])) if number else None)
        if each is None:
            raise InputError(
                f"there is no table for {name}",
                "nothing was attached",
                "give one per layer, by the router's module name or the layer's number",
            )
        shape = router_shape(name, router)
        if shape != (each.n_experts, each.moe.top_k):
            raise InputError(
                f"{name} chooses {shape[1]} of {shape[0]} experts, "
                f"the table's {each.moe.name!r} {each.moe.top_k} of {each.n_experts}",
                "nothing was attached",
                "use the table (or its moe=) of this layer",
            )
        tables[name] = each
    return tables
