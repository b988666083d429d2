"""`attach` and `detach`: see, and change, how a transformers model routes its tokens."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from costprof.core.errors import InputError
from costprof.costmodel.table import CostTable
from costprof.routing import Gate, SystemState
from costprof.routing.contract import Policy
from costprof.runtime.integrations import traced
from costprof.runtime.integrations.arguments import check_arguments, check_policy, tables_of
from costprof.runtime.integrations.batch import Batch, KnownRows, describe
from costprof.runtime.integrations.calls import (
    Call,
    Decision,
    call_of_backward,
    decide,
    in_backward,
    mark,
    nodes_of,
)
from costprof.runtime.integrations.families import (
    check_gate_of,
    find_routers,
    gate_of,
    triple,
)
from costprof.runtime.integrations.records import (
    LayerRecord,
    Recorder,
    RouterBypassedWarning,
    Summary,
)


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
        InputError: no router, one attached already, a layer without a fitting table, a gate that
            is not the router's, or an argument of another kind. Nothing is attached then.
    """
    check_arguments(model, table, gate, keep)
    found = find_routers(model, routers)
    for name, router in found.items():
        if any(isinstance(hook, _LayerHook) for hook in router._forward_hooks.values()):
            raise InputError(
                f"{name} is attached already",
                "its batches would be recorded and changed twice",
                "detach the model first",
            )
    return Attached(model, found, tables_of(found, table), policy=policy, gate=gate, keep=keep)


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
        self._history: dict[str, Any] = {}
        self._bring_own()
        self.policy = policy
        self._recorder = Recorder(self.tables, keep=keep)
        self._batches = 0
        self._parameters = list(inspect.signature(model.forward).parameters)
        self._handles = [
            model.register_forward_pre_hook(_BeforeModel(self), with_kwargs=True),
            model.register_forward_hook(_AfterModel(self), always_call=True),
            *(r.register_forward_hook(_LayerHook(self, name)) for name, r in routers.items()),
        ]

    @property
    def policy(self) -> Policy | None:
        """What may change the choice of experts; may be replaced between calls.

        Whatever is set starts without a history, the same policy set again as well.

        Raises:
            InputError: when set to what is no policy, and when set for the first time, if the gate
                is not the routers'.
        """
        return self._policy

    @policy.setter
    def policy(self, policy: Policy | None) -> None:
        check_policy(policy)
        if policy is not None and not self._gates_checked:
            for name, router in self._routers.items():
                check_gate_of(name, router, self._gate or gate_of(router))
            self._gates_checked = True
        with self._lock:
            self._policy = policy
            self._history.clear()

    @property
    def records(self) -> list[LayerRecord]:
        """The last layer calls, oldest first; priced when asked for."""
        with self._lock:
            return self._recorder.records()

    def summary(self, *, is_prefill: bool | None = None) -> Summary:
        """Return sums over all prefill calls, decode calls, or (None) both."""
        with self._lock:
            return self._recorder.summary(is_prefill=is_prefill)

    def detach(self) -> None:
        """Leave the model as it was found; what was recorded stays readable."""
        for handle in self._handles:
            handle.remove()
        traced.forget(self._handle)  # graphs compiled before go on without us

    def __enter__(self) -> Attached:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to threads and traces: a copied model brings its own."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_thread", "_handle")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._bring_own()

    def _bring_own(self) -> None:
        self._lock = threading.Lock()
        self._thread = _PerThread()
        self._handle = traced.handle_of(self)

    def before_model(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Note what a forward call says of its rows."""
        if in_backward():
            self._check_known_again()
            return
        arguments = dict(zip(self._parameters, args, strict=False)) | dict(kwargs)
        batch = describe(arguments)
        with self._lock:
            number, self._batches = self._batches, self._batches + 1
        keeps = torch.is_grad_enabled()
        before = nodes_of(arguments) if keeps and self._changes else []
        self._thread.call = Call(number, batch, keeps=keeps, before=before)

    def after_model(self, output: Any) -> None:
        """Forget the call, also after an error (where `output` is None)."""
        call, self._thread.call = self._thread.call, None
        if call is None or output is None:
            return
        if call.decisions:
            mark(output, call)
        if not call.called:
            warnings.warn(
                "the model ran without calling its routers; nothing was recorded or changed; "
                "turn off kernels that replace whole MoE layers",
                RouterBypassedWarning,
                stacklevel=2,
            )

    def after_router(self, layer: str, output: Any) -> tuple[Tensor, Tensor, Tensor] | None:
        """Record what the router of `layer` decided; return what it shall have decided instead."""
        own = triple(layer, output)
        if not torch.compiler.is_compiling():
            changed = self.route_layer(layer, own)
        elif not (torch.is_grad_enabled() and own[1].requires_grad):
            changed = traced.route_layer(*own, self._handle, layer)
        elif self._changes:
            changed = self._outside_graphs(layer, own)
        else:
            changed = own[1], traced.observe_layer(own[2], self._handle, layer)
        return None if changed is None else (own[0], *changed)

    @torch.compiler.disable(  # type: ignore[untyped-decorator, no-untyped-call]
        reason="the weights a policy decides on need a gradient"
    )
    def _outside_graphs(
        self, layer: str, own: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor] | None:
        return self.route_layer(layer, own)

    def route_layer(
        self, layer: str, own: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor] | None:
        """Return weights and indices [T, k] decided instead of a router's `own`, and record them.

        None leaves all as it is, as where the rows are not known.
        """
        if in_backward():
            return self._again(layer, own)
        call = self._thread.call
        batch = None if call is None else call.batch_of(own[0].shape[0])
        with self._lock:
            if call is None or batch is None or not self._changes:
                self._observe(layer, own[2], call)
                return None
            weights, indices, lost = self._route(layer, own, batch, call)
            self._recorder.add(
                layer,
                batch=call.number,
                is_prefill=batch.is_prefill,
                given=indices,
                chosen=own[2],
                gate_mass_lost=lost,
            )
        return weights, indices

    def observe_layer(self, layer: str, indices: Tensor) -> None:
        """Record that the router of `layer` chose `indices` [T, k] and nothing changes them."""
        if not in_backward():
            with self._lock:
                self._observe(layer, indices, self._thread.call)

    def _observe(self, layer: str, indices: Tensor, call: Call | None) -> None:
        batch = None if call is None else call.batch_of(indices.shape[0])
        self._recorder.add(
            layer,
            batch=self._batches if call is None else call.number,
            is_prefill=True if batch is None else batch.is_prefill,
            given=indices,
            chosen=indices,
            gate_mass_lost=None,
        )

    @property
    def _changes(self) -> bool:
        return not (self.policy is None or self.policy.neutral or self.batch_invariant)

    def _route(
        self,
        layer: str,
        own: tuple[Tensor, Tensor, Tensor],
        batch: Batch | KnownRows,
        call: Call,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return weights, indices [T, k] and mean gate mass lost, and go on in the history."""
        assert self.policy is not None
        decision = Decision(
            policy=self.policy,
            gate=self._gate or gate_of(self._routers[layer]),
            rows=batch.rows,
            state=self.state,
            history=self._history.get(layer),
        )
        if call.keeps:
            call.decisions[layer] = decision
        weights, indices, lost, history = decide(own, self.tables[layer], decision)
        self._history[layer] = history
        return weights, indices, lost

    def _again(
        self, layer: str, own: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor] | None:
        """Return what was decided when the layer ran first."""
        call = call_of_backward()
        decision = None if call is None else call.decisions.get(layer)
        if decision is None:
            return None
        weights, indices, *_ = decide(own, self.tables[layer], decision)
        return weights, indices

    def _check_known_again(self) -> None:
        if self._changes and call_of_backward() is None:
            raise InputError(
                "the whole model runs again in a backward pass, and its first run is not known",
                "what the policy decided cannot be repeated",
                "checkpoint its layers, or the model with use_reentrant=False",
            )


class _PerThread(threading.local):
    call: Call | None = None


class _Hook:
    """A hook of ours; knows to which attachment it belongs."""

    def __init__(self, attached: Attached) -> None:
        self.attached = attached


class _BeforeModel(_Hook):
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.attached.before_model(args, kwargs)


class _AfterModel(_Hook):
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.attached.after_model(output)


class _LayerHook(_Hook):
    def __init__(self, attached: Attached, layer: str) -> None:
        super().__init__(attached)
        self.layer = layer

    def __call__(self, router: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return self.attached.after_router(self.layer, output)


def _hooks(model: nn.Module) -> Iterator[_Hook]:
    for module in model.modules():
        hooks: list[Any] = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        yield from (hook for hook in hooks if isinstance(hook, _Hook))
