"""What `attach` accepts and refuses, what it tells policies, and how it ends."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_moes import LAYERS, N_EXPERTS, TOP_K, flat_table, tiny_moe
from torch import Tensor, nn
from watching import Watch, cache_name

from costprof.core.errors import InputError
from costprof.routing import CachePrior, Gate, Marginal, Skip, StatisticalBalance
from costprof.runtime.integrations import RouterBypassedWarning, attach, detach
from costprof.runtime.integrations.batch import describe

STRONG = Marginal(lam=5.0, q=0.3)
GATE = "model.layers.1.mlp.gate"


@pytest.fixture
def model() -> Any:
    return tiny_moe("qwen3_moe")


def ids(batch: int = 4, length: int = 5) -> Tensor:
    return torch.randint(3, 64, (batch, length), generator=torch.Generator().manual_seed(7))


@dataclass(frozen=True)
class Fails:
    neutral = False

    def choose(self, plain: Any, **_: Any) -> Any:
        raise RuntimeError("as told")


def test_transformers_is_not_imported_and_not_needed() -> None:
    code = "import costprof.runtime.integrations, sys; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_attaching_twice_is_refused(model: Any) -> None:
    attach(model, flat_table())
    for again in (model, model.model):
        with pytest.raises(InputError, match=r"gate is attached already; .*; detach the model"):
            attach(again, flat_table())
    detach(model)
    attach(model, flat_table())


@pytest.mark.parametrize(("experts", "top_k"), [(8, TOP_K), (N_EXPERTS, 2)])
def test_a_table_of_another_layer_is_refused(model: Any, experts: int, top_k: int) -> None:
    tables = {0: flat_table(), 1: flat_table(experts, top_k, name="other")}
    with pytest.raises(InputError) as refused:
        attach(model, tables)
    assert str(refused.value).startswith(
        f"{GATE} chooses 4 of 16 experts, the table's 'other' {top_k} of {experts}"
    )
    assert "\n" not in str(refused.value)
    assert not any(each._forward_hooks for each in model.modules())


def test_a_layer_without_a_table_is_refused(model: Any) -> None:
    with pytest.raises(InputError, match=f"there is no table for {GATE}"):
        attach(model, {0: flat_table()})


def test_each_layer_is_priced_by_its_own_table(model: Any) -> None:
    attached = attach(model, {0: flat_table(), GATE: flat_table(wake_us=500.0)})
    model(ids())
    first, second = attached.records
    assert (first.layer, second.layer) == ("model.layers.0.mlp.gate", GATE)
    assert second.latency_us > 5 * first.latency_us


def test_a_model_without_routers_is_refused() -> None:
    with pytest.raises(InputError, match="Linear has no top-k router"):
        attach(nn.Linear(2, 2), flat_table())


def test_modules_that_are_no_routers_are_refused(model: Any) -> None:
    with pytest.raises(InputError, match=r"no module 'model\.gate'"):
        attach(model, flat_table(), routers=["model.gate"])
    with pytest.raises(InputError, match="has no weight"):
        attach(model, flat_table(), routers=["model.norm"])


def test_a_gate_that_is_not_the_routers_is_refused(model: Any) -> None:
    with pytest.raises(InputError, match="does not weigh experts as sigmoid top-k does"):
        attach(model, flat_table(), STRONG, gate=Gate(top_k=TOP_K, score="sigmoid"))
    assert not any(each._forward_hooks for each in model.modules())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"model": None}, r"model is None; nothing was attached; give a transformers model"),
        ({"table": None}, r"table is None; nothing was attached; give a CostTable, or one"),
        ({"table": [flat_table()]}, r"table is list; nothing was attached; give a CostTable"),
        ({"table": {0: "t", 1: "t"}}, r"table for .*0\.mlp\.gate is 't'; .*; give a CostTable"),
        ({"policy": Marginal}, r"Marginal is not a policy; .*; build one, as in Marginal\(lam="),
        ({"policy": "marginal"}, r"'marginal' is not a policy; .*; build one"),
        ({"gate": "softmax"}, r"gate is 'softmax'; nothing was attached; give a Gate"),
        ({"keep": -1}, r"keep is -1; nothing was attached; give a number of records"),
        ({"keep": 2.5}, r"keep is 2\.5; nothing was attached"),
        ({"routers": []}, r"routers= is \[\]; nothing was attached; give a list"),
        ({"routers": GATE}, r"routers= is 'model.*'; nothing was attached; give a list"),
    ],
)
def test_arguments_of_another_kind_are_refused_in_a_line(
    model: Any, arguments: dict[str, Any], line: str
) -> None:
    with pytest.raises(InputError, match=f"^{line}") as refused:
        attach(**{"model": model, "table": flat_table(), **arguments})
    assert "\n" not in str(refused.value)
    assert not any(each._forward_hooks for each in model.modules())


def test_no_policy_is_set_that_is_none(model: Any) -> None:
    attached = attach(model, flat_table(), STRONG)
    with pytest.raises(InputError, match="Skip is not a policy"):
        attached.policy = Skip  # type: ignore[assignment]
    assert attached.policy is STRONG


class LoneTopKRouter(nn.Module):
    """A router no family here has: the weights are the square roots of the softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(N_EXPERTS, 8))
        self.top_k = TOP_K

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = x @ self.weight.T
        top = logits.softmax(dim=-1).topk(self.top_k, dim=-1)
        return logits, top.values.sqrt(), top.indices


def test_an_unknown_router_can_be_watched_but_not_changed() -> None:
    model = nn.Sequential(LoneTopKRouter())
    with pytest.raises(InputError, match="no policy can be attached to it"):
        attach(model, flat_table(), STRONG)
    attached = attach(model, flat_table())
    with pytest.raises(InputError, match="no policy can be attached to it"):
        attached.policy = STRONG
    model(torch.randn(6, 8))
    assert attached.records[0].tokens == 6
    assert attached.policy is None


class BiasedTopKRouter(LoneTopKRouter):
    """A router that is given its bias with every call."""

    def forward(self, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x + bias)


def test_a_router_that_needs_more_than_its_rows_is_refused_a_policy() -> None:
    model = nn.ModuleDict({"gate": BiasedTopKRouter()})
    with pytest.raises(InputError, match=r"needs more than its rows: .* attach without a policy"):
        attach(model, flat_table(), STRONG)
    attach(model, flat_table())


class HalvedTopKRouter(LoneTopKRouter):
    """A subclass whose weights a gate describes."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = x @ self.weight.T
        top = logits.sigmoid().topk(self.top_k, dim=-1)
        return logits, top.values / 2, top.indices


def test_any_router_subclass_takes_a_policy_with_its_gate() -> None:
    gate = Gate(top_k=TOP_K, score="sigmoid", renormalise=False, scaling=0.5)
    attach(nn.Sequential(HalvedTopKRouter()), flat_table(), STRONG, gate=gate)


def test_what_a_policy_is_told(model: Any) -> None:
    watch = Watch()
    attached = attach(model, flat_table(), watch)
    mask = torch.ones(4, 5, dtype=torch.int64)
    mask[1, :2] = 0
    model.generate(ids(), attention_mask=mask, max_new_tokens=3, min_new_tokens=3)
    prompt, second, third = watch.told[0], watch.told[LAYERS], watch.told[2 * LAYERS]
    assert torch.equal(prompt.real.view(4, 5), mask.bool())
    assert prompt.is_prefill.all()
    assert prompt.sequence.view(4, 5)[:, 0].tolist() == [0, 1, 2, 3]
    assert prompt.position.view(4, 5)[0].tolist() == [0, 1, 2, 3, 4]
    assert prompt.position.view(4, 5)[1].tolist() == [0, 0, 0, 1, 2]
    assert not prompt.lone_decode().any()
    assert second.lone_decode().all()
    assert second.position.tolist() == [5, 3, 5, 5]
    assert third.position.tolist() == [6, 4, 6, 6]
    assert set(attached._history.values()) == {3}  # one per layer, counted by the policy


def test_rows_a_policy_leaves_alone_keep_their_very_bits(model: Any) -> None:
    with torch.no_grad():
        plain = model(ids()).logits
        attach(model, flat_table(), Watch())
        assert torch.equal(model(ids()).logits, plain)


def test_speculated_tokens_are_not_changed(model: Any) -> None:
    with torch.no_grad():
        cache = model(ids(), use_cache=True).past_key_values
        attached = attach(model, flat_table(), STRONG)
        model(ids(4, 2), **{cache_name(model): cache})
    assert all(record.is_prefill for record in attached.records)
    assert attached.summary().gate_mass_lost == 0.0


def test_a_cache_without_a_mask_makes_decode_rows(model: Any) -> None:
    with torch.no_grad():
        cache = model(ids(), use_cache=True).past_key_values
        attached = attach(model, flat_table(), STRONG)
        model(ids(4, 1), **{cache_name(model): cache})
    assert not any(record.is_prefill for record in attached.records)
    assert attached.summary().gate_mass_lost > 0.0


@pytest.mark.parametrize(
    ("arguments", "is_prefill", "real"),
    [
        ({"input_ids": torch.ones(2, 1, dtype=torch.int64)}, True, [1, 1]),
        (
            {
                "input_ids": torch.ones(2, 1, dtype=torch.int64),
                "attention_mask": torch.tensor([[1, 1], [1, 0]]),
            },
            False,
            [1, 0],
        ),
        ({"inputs_embeds": torch.ones(1, 3, 8), "attention_mask": None}, True, [1, 1, 1]),
        (
            {
                "input_ids": torch.ones(1, 2, dtype=torch.int64),
                "attention_mask": torch.zeros(1, 1, 2, 2),
            },
            True,
            [1, 1],
        ),
    ],
)
def test_rows_from_a_models_arguments(arguments: Any, is_prefill: bool, real: list[int]) -> None:
    batch = describe(arguments)
    assert batch is not None
    assert batch.is_prefill is is_prefill
    assert batch.rows.real.tolist() == [bool(each) for each in real]


def test_arguments_that_say_nothing_change_nothing(model: Any) -> None:
    assert describe({"input_ids": None}) is None
    plain = model.model(ids(4, 1)).last_hidden_state
    attached = attach(model, flat_table(), Skip(beta=0.9))
    # The inner model, behind the attached one's back.
    assert torch.equal(model.model(ids(4, 1)).last_hidden_state, plain)
    assert attached.summary().calls == LAYERS


def test_a_policy_that_is_set_starts_without_a_history(model: Any) -> None:
    attached = attach(model, flat_table(), CachePrior(lam=0.5))
    with torch.no_grad():
        model(ids())
        for policy in (StatisticalBalance(rate=0.01), Watch()):
            attached.policy = policy
            model(ids())
    assert set(attached._history.values()) == {1}


def test_detach_works_after_an_error_in_a_forward(model: Any) -> None:
    with torch.no_grad():
        plain = model(ids()).logits
        attach(model, flat_table(), Fails())
        with pytest.raises(RuntimeError, match="as told"):
            model(ids())
        detach(model)
        assert torch.equal(model(ids()).logits, plain)
    detach(model)  # once more has no effect


def test_an_error_leaves_no_stale_rows(model: Any) -> None:
    attached = attach(model, flat_table(), Fails())
    with pytest.raises(RuntimeError, match="as told"):
        model(ids())
    watch = attached.policy = Watch()
    model.model(ids())  # as many rows as the call that failed
    assert watch.told == []


def test_as_a_context_it_detaches_at_the_end(model: Any) -> None:
    with attach(model, flat_table()) as attached, torch.no_grad():
        model(ids())
    assert not any(each._forward_hooks for each in model.modules())
    assert len(attached.records) == LAYERS


def test_records_are_bounded_and_the_summary_is_not(model: Any) -> None:
    attached = attach(model, flat_table(), keep=3)
    with torch.no_grad():
        for _ in range(300):
            model(ids(1, 2))
    assert [record.batch for record in attached.records] == [298, 299, 299]
    assert len(attached._recorder._pending) == 0
    assert attached.summary().calls == 300 * LAYERS
    assert attached.summary(is_prefill=False).calls == 0
    only = attach(tiny_moe("qwen3_moe"), flat_table(), keep=10)
    assert only.summary().calls == 0


def test_a_saved_and_a_copied_model_are_the_models(model: Any, tmp_path: Path) -> None:
    with torch.no_grad():
        plain = model(ids()).logits
        attach(model, flat_table(), STRONG)
        model.save_pretrained(tmp_path)
        read = type(model).from_pretrained(tmp_path).eval()
        torch.testing.assert_close(read(ids()).logits, plain)
        copied = copy.deepcopy(model)
        detach(copied)
        assert not any(each._forward_hooks for each in copied.modules())
        assert any(each._forward_hooks for each in model.modules())
        assert torch.equal(copied(ids()).logits, plain)


def test_batch_invariance_is_one_switch(model: Any) -> None:
    def run() -> Tensor:
        done: Tensor = model.generate(
            ids(), attention_mask=torch.ones(4, 5), max_new_tokens=4, do_sample=False
        )
        return done

    plain = run()
    attached = attach(model, flat_table(), STRONG)
    attached.batch_invariant = True
    assert torch.equal(run(), plain)
    assert attached.summary().gate_mass_lost == 0.0


def test_a_model_that_bypasses_its_routers_is_told_of() -> None:
    class Bypass(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = LoneTopKRouter()

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.gate.weight.T  # as a kernel does that takes the whole layer

    model = Bypass()
    attach(model, flat_table())
    with pytest.warns(RouterBypassedWarning, match="without calling its routers"):
        model(torch.randn(2, 8))
