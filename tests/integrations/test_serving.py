"""The layer both servers are given: padding, decode, totals, refusals. No server needed."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_moes import flat_table
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from costprof.core.errors import InputError
from costprof.costmodel.table import write_table
from costprof.routing import CachePrior, Gate, Marginal, Prune, Scheduled, StatisticalBalance, TopK
from costprof.routing.contract import Policy, Stage, SystemState
from costprof.routing.gate import select
from costprof.runtime.integrations import graphs, sglang_plugin, vllm_plugin
from costprof.runtime.integrations.config import VARIABLE, read_config
from costprof.runtime.integrations.serving import ServedLayer, ServedLayers, Step

STRONG = Marginal(lam=5.0, q=0.3)
TABLE = "shipped:Qwen3-30B-A3B"
NAMES = json.loads((Path(__file__).parent / "serving_interfaces.json").read_text())


def logits_of(tokens: int) -> Tensor:
    return torch.randn(tokens, 16, generator=torch.Generator().manual_seed(tokens))


def call(layer: ServedLayer, logits: Tensor, *, renormalize: bool = True) -> tuple[Tensor, Tensor]:
    """Call `layer` by the very keywords the servers use."""
    values = (torch.zeros(logits.shape[0], 8), logits, 4, renormalize)
    names = NAMES["vllm"]["routing_function_keywords"]
    assert names == NAMES["sglang"]["routing_function_keywords"]
    return layer(**dict(zip(names, values, strict=True)))


def decode(real: list[bool] | None = None) -> Any:
    return lambda _: Step(real=None if real is None else torch.tensor(real), is_decode=True)


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("policy", [None, TopK(), Marginal(lam=0.0)])
def test_without_a_policy_it_is_plain_top_k(policy: Any, renormalize: bool) -> None:
    logits = logits_of(6)
    weights, ids = call(
        ServedLayer(0, flat_table(), policy, decode()), logits, renormalize=renormalize
    )
    plain = select(logits, Gate(top_k=4, renormalise=renormalize))
    assert torch.equal(weights, plain.weights)
    assert torch.equal(ids, plain.indices.int())
    assert (weights.dtype, ids.dtype) == (torch.float32, torch.int32)


def test_a_policy_wakes_fewer_experts_in_decode_only() -> None:
    logits = logits_of(6)
    plain = select(logits, Gate(top_k=4)).indices
    _, ids = call(ServedLayer(0, flat_table(), STRONG, decode()), logits)
    assert len(ids.unique()) < len(plain.unique())
    _, ids = call(ServedLayer(0, flat_table(), STRONG, lambda _: Step()), logits)
    assert torch.equal(ids, plain.int())


def test_padding_rows_change_nothing_and_wake_nothing() -> None:
    logits = logits_of(8)
    alone = call(ServedLayer(0, flat_table(), STRONG, decode()), logits[:5].clone())
    real = [True] * 5 + [False] * 3
    padded_logits = logits.clone()
    padded_logits[5:] *= 100
    padded = call(ServedLayer(0, flat_table(), STRONG, decode(real)), padded_logits)
    assert torch.equal(padded[0][:5], alone[0])
    assert torch.equal(padded[1][:5], alone[1])
    assert (padded[0][5:] == 0).all()
    assert set(padded[1][5:].flatten().tolist()) <= set(alone[1].flatten().tolist())


def test_totals_are_of_real_rows_and_of_steps_that_had_some() -> None:
    logits, table = logits_of(8), flat_table()
    steps = [[True] * 8, [True] * 3 + [False] * 5, [False] * 8]
    reading = iter(steps)
    layer = ServedLayer(0, table, STRONG, lambda _: Step(torch.tensor(next(reading)), True))
    want_us, want_plain_us = 0.0, 0.0
    for real in steps:
        weights, ids = call(layer, logits)
        if any(real):
            kept = ids[torch.tensor(real)][weights[torch.tensor(real)] >= 0]
            plain = select(logits, Gate(top_k=4)).indices[torch.tensor(real)]
            want_us += float(table.layer_cost(torch.bincount(kept.flatten(), None, 16)).latency_us)
            want_plain_us += float(
                table.layer_cost(torch.bincount(plain.flatten(), None, 16)).latency_us
            )
    totals = layer.totals()
    assert totals.steps == 2
    assert totals.latency_us == pytest.approx(want_us)
    assert totals.plain_latency_us == pytest.approx(want_plain_us)
    assert totals.latency_us < totals.plain_latency_us
    assert totals.active_experts < totals.plain_active_experts


def test_observing_ignores_ids_that_are_no_expert() -> None:
    layer = ServedLayer(0, flat_table(), None, lambda _: Step())
    assert layer.totals().steps == 0
    layer.observe(torch.tensor([[0, 1, 2, 3], [0, 1, -1, 99]], dtype=torch.int32))
    totals = layer.totals()
    assert (totals.steps, totals.active_experts) == (1, 4.0)
    assert totals.latency_us == pytest.approx(2 * (50 + 2 * 0.5) + 2 * (50 + 0.5))


@pytest.mark.parametrize(
    "policy",
    [
        StatisticalBalance(rate=0.05, max_bias=1.0),
        CachePrior(lam=2.0),
        Prune(share=0.5),
        Scheduled.by_stage(cool=CachePrior(lam=2.0)),
    ],
)
def test_a_captured_graph_carries_history_on(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replay runs no Python: what it remembers must be where it was captured."""
    # On a CPU a table checks counts by their values, which no trace has.
    monkeypatch.setattr(ServedLayer, "_add", lambda *_: None)
    eager, captured = (ServedLayer(0, flat_table(), policy, decode()) for _ in range(2))
    batches = [torch.randn(8, 16, generator=torch.Generator().manual_seed(s)) for s in range(12)]
    for layer in (eager, captured):
        call(layer, batches[0])
    graph = make_fx(lambda logits: call(captured, logits))(batches[1])
    # Tracing ran the batch once, and left its history behind: as warming up does.
    call(eager, batches[1])
    moved = 0
    for logits in batches[1:]:
        weights, ids = graph(logits)
        want_weights, want_ids = call(eager, logits)
        assert torch.equal(ids, want_ids)
        assert torch.equal(weights, want_weights)
        moved += not torch.equal(ids, select(logits, Gate(top_k=4)).indices.int())
    assert moved > len(batches) // 2


def test_a_history_is_not_begun_inside_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = ServedLayer(0, flat_table(), CachePrior(lam=2.0), decode())
    monkeypatch.setattr(graphs, "is_captured", lambda _: True)
    with pytest.raises(InputError, match="captured of a layer that was never called"):
        call(layer, logits_of(8))


@pytest.mark.parametrize(("shape", "topk"), [(8, 4), (16, 2)])
def test_another_layer_is_refused(shape: int, topk: int) -> None:
    layer = ServedLayer(3, flat_table(), None, lambda _: Step())
    with pytest.raises(InputError, match=f"MoE layer 3 chooses {topk} of {shape} experts"):
        layer(torch.zeros(2, 8), torch.zeros(2, shape), topk, True)


# ---- vLLM ----


@dataclass
class StandInRouter:
    arguments: dict[str, Any]
    capture_fn: Any = None

    def set_capture_fn(self, capture_fn: Any) -> None:
        self.capture_fn = capture_fn


def create_fused_moe_router(
    top_k: int,
    global_num_experts: int,
    renormalize: bool = True,
    use_grouped_topk: bool = False,
    scoring_func: str = "softmax",
    num_fused_shared_experts: int = 0,
    routed_scaling_factor: float = 1.0,
    e_score_correction_bias: Tensor | None = None,
    custom_routing_function: Any = None,
    zero_expert_type: str | None = None,
    num_logical_experts: int | None = None,
    hash_indices_table: Tensor | None = None,
) -> StandInRouter:
    """vLLM's own returns a router, whose class this test does not need."""
    return StandInRouter(dict(locals()))


def test_the_stand_in_has_vllms_names() -> None:
    names = set(inspect.signature(create_fused_moe_router).parameters)
    assert names <= set(NAMES["vllm"]["create_fused_moe_router"])


def test_vllm_layers_are_watched_by_default() -> None:
    served = ServedLayers(flat_table(), None, lambda _: Step())
    router = vllm_plugin.routed_by(create_fused_moe_router, served)(4, global_num_experts=16)
    assert router.arguments["custom_routing_function"] is None
    router.capture_fn(torch.tensor([[0, 1, 2, 3]]))
    assert [each.steps for each in served.totals()] == [1]


def test_vllm_layers_get_a_function_with_a_policy() -> None:
    served = ServedLayers(flat_table(), STRONG, decode())
    create = vllm_plugin.routed_by(create_fused_moe_router, served)
    first, second = (create(top_k=4, global_num_experts=16).arguments for _ in range(2))
    assert first["custom_routing_function"] is not second["custom_routing_function"]
    call(second["custom_routing_function"], logits_of(6))
    assert [each.steps for each in served.totals()] == [0, 1]


@pytest.mark.parametrize(
    "given",
    [
        {"use_grouped_topk": True},
        {"e_score_correction_bias": torch.zeros(16)},
        {"routed_scaling_factor": 2.5},
        {"scoring_func": "sigmoid"},
        {"custom_routing_function": max},
    ],
)
def test_vllm_layers_no_function_can_route_are_refused(given: dict[str, Any]) -> None:
    served = ServedLayers(flat_table(), STRONG, decode())
    create = vllm_plugin.routed_by(create_fused_moe_router, served)
    with pytest.raises(InputError, match=f"routes with {next(iter(given))}; vLLM lets no function"):
        create(4, 16, **given)
    watched = ServedLayers(flat_table(), None, decode())
    vllm_plugin.routed_by(create_fused_moe_router, watched)(4, 16, **given)


def test_vllm_layers_of_another_table_are_refused() -> None:
    create = vllm_plugin.routed_by(
        create_fused_moe_router, ServedLayers(flat_table(), None, decode())
    )
    with pytest.raises(InputError, match="chooses 8 of 128 experts"):
        create(8, 128)
    create(4, 18, num_logical_experts=16)  # two of them copies


def vllm_context(padding: Tensor | None, query_len: int | None) -> Any:
    names = NAMES["vllm"]["forward_context_fields"]
    layer = None if query_len is None else {"a": SimpleNamespace(max_query_len=query_len)}
    return SimpleNamespace(
        **dict(zip(names, (layer, SimpleNamespace(uniform=True), padding), strict=True))
    )


def test_what_vllms_forward_context_says() -> None:
    logits, padding = torch.zeros(3, 16), torch.tensor([False, False, True])
    step = vllm_plugin.step_of(vllm_context(padding, 1), logits)
    assert step.is_decode
    assert step.real is not None
    assert step.real.tolist() == [True, True, False]
    assert not vllm_plugin.step_of(vllm_context(padding, 5), logits).is_decode
    assert not vllm_plugin.step_of(vllm_context(padding, None), logits).is_decode
    assert not vllm_plugin.step_of(vllm_context(None, 1), logits).is_decode
    assert not vllm_plugin.step_of(vllm_context(padding[:2], 1), logits).is_decode


# ---- SGLang ----


@dataclass
class ForwardBatch:
    mode: str = "decode"
    batch_size: int = 3
    bound: Tensor | None = field(default_factory=lambda: torch.tensor(2))

    @property
    def forward_mode(self) -> Any:
        return SimpleNamespace(is_decode=lambda: self.mode == "decode")

    def moe_num_token_non_padded(self) -> Tensor | None:
        return self.bound


def sglang_step(batch: ForwardBatch | None, tokens: int = 3) -> Step:
    lent = None if batch is None else batch.moe_num_token_non_padded
    context = SimpleNamespace(attn_backend=None, moe_num_token_non_padded=lent)
    return sglang_plugin.step_of(context, torch.zeros(tokens, 16))


def test_what_sglangs_forward_context_says() -> None:
    step = sglang_step(ForwardBatch())
    assert step.is_decode
    assert step.real is not None
    assert step.real.tolist() == [True, True, False]
    assert not sglang_step(ForwardBatch(mode="extend")).is_decode
    assert not sglang_step(None).is_decode
    assert sglang_step(ForwardBatch(bound=None)).is_decode
    assert not sglang_step(ForwardBatch(bound=None), tokens=4).is_decode


def test_sglang_layers_get_a_function_with_a_policy() -> None:
    hooks = sglang_plugin.Hooks(ServedLayers(flat_table(), STRONG, decode()))
    changed = hooks.before_topk_init("self", 4, layer_id=7, renormalize=True)
    assert changed is not None
    assert changed[0] == ("self", 4)
    assert set(changed[1]) == {"layer_id", "renormalize", "custom_routing_function"}
    with pytest.raises(InputError, match="use_grouped_topk; SGLang lets no function route it"):
        hooks.before_topk_init("self", 4, layer_id=8, use_grouped_topk=True)


def test_sglang_layers_are_watched_by_default() -> None:
    served = ServedLayers(flat_table(), None, decode())
    hooks = sglang_plugin.Hooks(served)
    result = SimpleNamespace(topk_ids=torch.tensor([[0, 1, 2, 3, 16]]))
    fused = SimpleNamespace(num_shared_topk_slots=1)  # expert 16 is the shared one
    for layer_id in (3, 4, 3):
        hooks.after_select_experts(
            result, None, torch.zeros(1, 16), topk_config=fused, layer_id=layer_id
        )
    assert [each.steps for each in served.totals()] == [2, 1]
    assert [each.active_experts for each in served.totals()] == [4.0, 4.0]
    with pytest.raises(InputError, match="MoE layer 2 chooses 5 of 16 experts"):
        plain = SimpleNamespace(num_shared_topk_slots=0)
        hooks.after_select_experts(result, None, torch.zeros(1, 16), plain, layer_id=5)


# ---- configuration and entry points ----


@pytest.fixture
def table_path(tmp_path: Path) -> Path:
    table = flat_table()
    write_table(tmp_path / "table.parquet", table.rows, table.manifest)
    return tmp_path / "table.parquet"


def config(folder: Path, **content: Any) -> dict[str, str]:
    path = folder / "config.json"
    path.write_text(json.dumps(content))
    return {VARIABLE: str(path)}


def test_configuration_from_a_file(table_path: Path) -> None:
    given = {"table": table_path.name, "allow_device_mismatch": True}
    read = read_config(config(table_path.parent, **given))
    assert read is not None
    assert read.policy is None
    assert read.table.n_experts == 16
    read = read_config(
        config(table_path.parent, **given, policy="marginal", parameters={"lam": 2.0})
    )
    assert read is not None
    assert read.policy == Marginal(lam=2.0)
    assert read_config({}) is None


@pytest.mark.parametrize("plugin", [vllm_plugin, sglang_plugin])
def test_a_policy_follows_the_stage_it_is_told(
    table_path: Path, plugin: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    strong = {"policy": "marginal", "parameters": {"lam": 5.0, "q": 0.3}}
    read = read_config(
        config(
            table_path.parent,
            table=table_path.name,
            allow_device_mismatch=True,
            by_stage={"cool": {"policy": "topk"}, "hot": strong},
        )
    )
    assert read is not None
    served = ServedLayers(read.table, read.policy, decode())
    monkeypatch.setattr(plugin, "_served", [served])
    layer, logits = served.layer(), logits_of(6)
    fewer = call(ServedLayer(0, read.table, STRONG, decode()), logits)
    plain = call(ServedLayer(0, read.table, None, decode()), logits)
    stages: tuple[tuple[Stage, Any], ...] = (
        ("cool", plain),
        ("warm", plain),
        ("hot", fewer),
        ("critical", fewer),
        ("cool", plain),
    )
    for stage, want in stages:
        plugin.set_state(SystemState(stage=stage))
        for got, each in zip(call(layer, logits), want, strict=True):
            assert torch.equal(got, each)
    monkeypatch.setattr(graphs, "is_captured", lambda _: True)
    with pytest.raises(
        InputError, match=r"would keep the policy of this stage; .*; run the server"
    ):
        call(layer, logits)


def test_shipped_predictions_can_be_named(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="predictions for NVIDIA H200"):
        read = read_config(config(tmp_path, table="shipped:Qwen3-30B-A3B"))
    assert read is not None
    assert read.table.n_experts == 128


@pytest.mark.filterwarnings("ignore:.*predictions for NVIDIA H200")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "is not an object with a table"),
        ({"table": "t", "tabel": 1}, "is not an object with a table"),
        ({"table": "t", "allow_device_mismatch": "false"}, 'allow_device_mismatch is "false" and'),
        ({"table": "t", "allow_device_mismatch": 1}, "allow_device_mismatch is 1 and moe null"),
        (
            {"table": TABLE, "by_stage": {"hot": {"policy": "topk"}}},
            r'by_stage is {"hot": .*; write',
        ),
        ({"table": TABLE, "by_stage": {"cool": {}, "tepid": {}}}, "of cool, warm, hot, critical"),
        ({"table": TABLE, "by_stage": {"cool": "topk"}}, 'by_stage is {"cool": "topk"}; nothing'),
        ({"table": TABLE, "by_stage": {"cool": {"lam": 1}}}, 'by_stage is {"cool": {"lam": 1}}'),
        ({"table": TABLE, "by_stage": []}, r"by_stage is \[\]; nothing is observed or routed"),
        (
            {"table": TABLE, "by_stage": {"cool": {}}, "policy": "topk"},
            "beside a policy for all stages",
        ),
        ({"table": TABLE, "by_stage": {"cool": {"policy": "x"}}}, "there is no policy 'x'"),
        ({"table": "t", "moe": ["x"]}, r'and moe \["x"\]; nothing is observed or routed; write'),
        (
            {"table": "shipped:Qwen3-30B-A3B", "moe": "DeepSeek-V3"},
            "names its MoE, and moe is 'DeepSeek-V3'; .* name 'shipped:DeepSeek-V3' instead",
        ),
    ],
)
def test_a_wrong_configuration_is_refused(
    tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_config(config(tmp_path, **content))


def test_a_missing_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{VARIABLE} names .*which cannot be read"):
        read_config({VARIABLE: str(tmp_path / "none.json")})


@pytest.mark.parametrize("server", ["vllm", "sglang"])
def test_the_entry_points_are_there_and_need_no_server(server: str) -> None:
    (point,) = (
        each
        for each in entry_points(group=NAMES[server]["entry_point_group"])
        if each.name == "costprof"
    )
    code = f"import os; os.environ.pop({VARIABLE!r}, None)\n"
    code += f"import {point.module} as plugin, sys; plugin.register()\n"
    code += f"print({server!r} in sys.modules, plugin.totals())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False []"
    assert point.attr == "register"


def test_vllm_is_told_once_per_process(
    table_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On stand-ins with vLLM's module names; its own factory is in test_serving_sources.py."""
    layer, context = ModuleType("layer"), ModuleType("forward_context")
    monkeypatch.setattr(layer, "create_fused_moe_router", create_fused_moe_router, raising=False)
    padding = torch.tensor([False] * 5 + [True])
    stand_ins = {
        "get_forward_context": lambda: vllm_context(padding, 1),
        "is_forward_context_available": lambda: True,
    }
    for name, value in stand_ins.items():
        monkeypatch.setattr(context, name, value, raising=False)
    package = ModuleType("fused_moe")
    monkeypatch.setattr(package, "layer", layer, raising=False)
    for name, module in {
        "vllm": ModuleType("vllm"),
        "vllm.model_executor": ModuleType("model_executor"),
        "vllm.model_executor.layers": ModuleType("layers"),
        "vllm.model_executor.layers.fused_moe": package,
        "vllm.model_executor.layers.fused_moe.layer": layer,
        "vllm.forward_context": context,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    given = config(
        tmp_path,
        table=str(table_path),
        allow_device_mismatch=True,
        policy="marginal",
        parameters={"lam": 5.0, "q": 0.3},
    )
    monkeypatch.setenv(VARIABLE, given[VARIABLE])
    monkeypatch.setattr(vllm_plugin, "_served", [])
    vllm_plugin.register()
    vllm_plugin.register()
    router = layer.create_fused_moe_router(4, 16)
    weights, _ = call(router.arguments["custom_routing_function"], logits_of(6))
    assert (weights[5] == 0).all()
    (totals,) = vllm_plugin.totals()
    assert totals.steps == 1
    assert totals.active_experts < totals.plain_active_experts
