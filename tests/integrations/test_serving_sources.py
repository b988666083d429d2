"""The plug-ins against the servers' own files, read out of their wheels; nothing is installed.

pip download --no-deps --dest wheels vllm==0.33.0 sglang==0.5.23
COSTPROF_SERVING_WHEELS=wheels pytest tests/integrations/test_serving_sources.py
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_moes import flat_table
from torch import Tensor

from costprof.costmodel.table import write_table
from costprof.routing import Gate, Marginal
from costprof.routing.gate import select
from costprof.runtime.integrations import sglang_plugin, vllm_plugin
from costprof.runtime.integrations.config import VARIABLE
from costprof.runtime.integrations.serving import UNKNOWN, ServedLayer, ServedLayers, Step

NAMES = json.loads((Path(__file__).parent / "serving_interfaces.json").read_text())
STRONG = Marginal(lam=5.0, q=0.3)
VLLM_MOE = "vllm/model_executor/layers/fused_moe"
SGLANG_TOPK = "sglang/srt/layers/moe/topk.py"


class Sources:
    """The Python files of a wheel."""

    def __init__(self, server: str) -> None:
        folder = os.environ.get("COSTPROF_SERVING_WHEELS")
        version = NAMES[server]["version"]
        found = sorted(Path(folder).glob(f"{server}-{version}-*.whl")) if folder else []
        if not found:
            pytest.skip(f"no wheel of {server} {version} in COSTPROF_SERVING_WHEELS")
        self._wheel = zipfile.ZipFile(found[0])

    def text(self, path: str) -> str:
        return self._wheel.read(path).decode()

    def definition(self, path: str, name: str) -> Any:
        """Return the class or function `name`, or `Class.method`, of the file at `path`."""
        body: Any = ast.parse(self.text(path))
        for part in name.split("."):
            body = next(node for node in body.body if getattr(node, "name", None) == part)
        return body

    def fields(self, path: str, name: str) -> set[str]:
        body = self.definition(path, name).body
        return {node.target.id for node in body if isinstance(node, ast.AnnAssign)}

    def parameters(self, path: str, name: str) -> list[str]:
        arguments = self.definition(path, name).args
        return [each.arg for each in (*arguments.args, *arguments.kwonlyargs)]

    def keywords_of_call(self, path: str, function: str, called: str) -> list[str]:
        for node in ast.walk(self.definition(path, function)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == called:
                return [str(each.arg) for each in node.keywords]
        raise AssertionError(f"{function} does not call {called}")

    def extract(self, path: str, folder: Path) -> None:
        """Put the file at `path` below `folder`, its packages without their own code."""
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(self.text(path))

    def run(self, path: str, name: str, folder: Path, **names: Any) -> Any:
        """Return the function `name` as the file at `path` defines it, with `names` as globals."""
        node = self.definition(path, name)
        node.decorator_list, node.returns = [], None
        for each in (*node.args.args, *node.args.kwonlyargs):
            each.annotation = None
        source = folder / f"{node.name}.py"
        source.write_text(ast.unparse(node))
        spec = importlib.util.spec_from_file_location(node.name, source)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        vars(module).update(names)
        spec.loader.exec_module(module)
        return getattr(module, node.name)


@pytest.fixture(scope="module")
def vllm() -> Sources:
    return Sources("vllm")


@pytest.fixture(scope="module")
def sglang() -> Sources:
    return Sources("sglang")


def test_vllms_names_are_those_recorded(vllm: Sources) -> None:
    names = NAMES["vllm"]
    factory, context = f"{VLLM_MOE}/router/router_factory.py", "vllm/forward_context.py"
    assert vllm.parameters(factory, "create_fused_moe_router") == names["create_fused_moe_router"]
    assert (
        vllm.keywords_of_call(
            f"{VLLM_MOE}/router/custom_routing_router.py",
            "CustomRoutingRouter._compute_routing",
            "self.custom_routing_function",
        )
        == names["routing_function_keywords"]
    )
    assert set(names["forward_context_fields"]) <= vllm.fields(context, "ForwardContext")
    assert set(names["batch_descriptor_fields"]) <= vllm.fields(context, "BatchDescriptor")
    assert set(names["attention_metadata_fields"]) <= vllm.fields(
        "vllm/v1/attention/backends/flash_attn.py", "FlashAttentionMetadata"
    )
    assert f'"{names["entry_point_group"]}"' in vllm.text("vllm/plugins/__init__.py")
    assert vllm.parameters(f"{VLLM_MOE}/router/base_router.py", "BaseRouter.set_capture_fn") == [
        "self",
        "capture_fn",
    ]


def test_vllms_layers_ask_the_factory_by_its_global_name(vllm: Sources) -> None:
    calls = vllm.keywords_of_call(
        f"{VLLM_MOE}/layer.py", "FusedMoEFactory", "create_fused_moe_router"
    )
    assert {"top_k", "global_num_experts", "custom_routing_function"} <= set(calls)


def test_vllms_own_router_calls_a_served_layer(vllm: Sources, tmp_path: Path) -> None:
    compute = vllm.run(
        f"{VLLM_MOE}/router/custom_routing_router.py",
        "CustomRoutingRouter._compute_routing",
        tmp_path,
        torch=torch,
    )
    served = ServedLayer(0, flat_table(), None, lambda _: Step())
    router = SimpleNamespace(custom_routing_function=served, top_k=4, renormalize=True)
    logits = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    weights, ids = compute(router, torch.zeros(5, 8), logits, torch.int64)
    plain = select(logits, Gate(top_k=4))
    assert torch.equal(weights, plain.weights)
    assert torch.equal(ids, plain.indices)
    assert served.totals().steps == 1


def test_vllms_own_softmax_router_agrees_with_the_gate(vllm: Sources, tmp_path: Path) -> None:
    own = vllm.run(f"{VLLM_MOE}/router/cpu_router.py", "_softmax_topk", tmp_path, torch=torch)
    logits = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    for renormalize in (True, False):
        weights, ids = own(logits, 4, renormalize)
        dense = torch.zeros(64, 16).scatter_(1, ids.long(), weights)
        plain = select(logits, Gate(top_k=4, renormalise=renormalize))
        ours = torch.zeros(64, 16).scatter_(1, plain.indices, plain.weights)
        torch.testing.assert_close(dense, ours)


class Router:
    """What any router of vLLM offers that the plug-in needs."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments

    def set_capture_fn(self, capture_fn: Any) -> None:
        self.capture_fn = capture_fn


def test_vllms_own_factory_takes_a_served_layer(vllm: Sources, tmp_path: Path) -> None:
    def kind(name: str) -> Any:
        return type(name, (Router,), {})

    factory = vllm.run(
        f"{VLLM_MOE}/router/router_factory.py",
        "create_fused_moe_router",
        tmp_path,
        torch=torch,
        current_platform=SimpleNamespace(is_cpu=lambda: False, is_rocm=lambda: False),
        envs=SimpleNamespace(VLLM_MOE_ROUTING_SIMULATION_STRATEGY=""),
        CustomRoutingRouter=kind("CustomRoutingRouter"),
        FusedTopKRouter=kind("FusedTopKRouter"),
    )
    served = ServedLayers(flat_table(), STRONG, lambda _: Step(is_decode=True))
    router = vllm_plugin.routed_by(factory, served)(top_k=4, global_num_experts=16)
    assert type(router).__name__ == "CustomRoutingRouter"
    assert isinstance(router.arguments["custom_routing_function"], ServedLayer)
    watched = ServedLayers(flat_table(), None, lambda _: Step())
    router = vllm_plugin.routed_by(factory, watched)(top_k=4, global_num_experts=16)
    assert type(router).__name__ == "FusedTopKRouter"
    assert router.capture_fn.__self__ in [watched._layers[key] for key in watched._layers]


def test_sglangs_names_are_those_recorded(sglang: Sources) -> None:
    names = NAMES["sglang"]
    assert (
        sglang.keywords_of_call(SGLANG_TOPK, "select_experts", "custom_routing_function")
        == names["routing_function_keywords"]
    )
    assert set(names["topk_init"]) <= set(sglang.parameters(SGLANG_TOPK, "TopK.__init__"))
    for name in names["topk_config"]:
        assert sglang.parameters(SGLANG_TOPK, f"TopKConfig.{name}") == ["self"]
    assert set(names["select_experts"]) <= set(sglang.parameters(SGLANG_TOPK, "select_experts"))
    assert f'"{names["entry_point_group"]}"' in sglang.text("sglang/srt/plugins/__init__.py")
    batch = "sglang/srt/model_executor/forward_batch_info.py"
    assert set(names["forward_batch_fields"]) <= sglang.fields(batch, "ForwardBatch")
    assert sglang.parameters(batch, "ForwardBatch.moe_num_token_non_padded") == ["self"]
    assert sglang.parameters(batch, "ForwardMode.is_decode") == ["self"]


@pytest.fixture
def sglang_modules(
    sglang: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, Any]]:
    """SGLang's own hook registry and forward context, which need nothing else, imported."""
    names = ("sglang.srt.plugins.hook_registry", "sglang.srt.model_executor.forward_context")
    for name in names:
        sglang.extract(f"{name.replace('.', '/')}.py", tmp_path)
    (tmp_path / "sglang/srt/layers/moe").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    modules = {name.rpartition(".")[2]: importlib.import_module(name) for name in names}
    assert all(str(tmp_path) in str(each.__file__) for each in modules.values())
    yield modules
    for name in [name for name in sys.modules if name.partition(".")[0] == "sglang"]:
        del sys.modules[name]


class Batch:
    """A decode step of three rows, the last of them padding."""

    forward_mode = SimpleNamespace(is_decode=lambda: True)
    batch_size = 3

    def moe_num_token_non_padded(self) -> Tensor:
        return torch.tensor(2)


def test_sglangs_own_forward_context_is_read(sglang_modules: dict[str, Any]) -> None:
    context = sglang_modules["forward_context"]
    logits = torch.zeros(3, 16)
    assert sglang_plugin.read_step(logits) is UNKNOWN
    with context.forward_context(context.ForwardContext(None), forward_batch=Batch()):
        step = sglang_plugin.read_step(logits)
    assert step.is_decode
    assert step.real is not None
    assert step.real.tolist() == [True, True, False]


@pytest.mark.parametrize("policy", [None, "marginal"])
def test_sglangs_own_registry_hooks_its_own_functions(
    sglang: Sources,
    sglang_modules: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    policy: str | None,
) -> None:
    table = flat_table()
    write_table(tmp_path / "table.parquet", table.rows, table.manifest)
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "table": "table.parquet",
                "allow_device_mismatch": True,
                "policy": policy,
                "parameters": {"lam": 5.0, "q": 0.3} if policy else {},
            }
        )
    )
    monkeypatch.setenv(VARIABLE, str(tmp_path / "config.json"))
    monkeypatch.setattr(sglang_plugin, "_served", [])

    class TopK:
        def __init__(self, top_k: int, *, layer_id: int, custom_routing_function: Any = None):
            self.config = {"top_k": top_k, "custom_routing_function": custom_routing_function}

    def fused_topk(hidden_states: Any, gating_output: Tensor, topk: int, **_: Any) -> Any:
        plain = select(gating_output, Gate(top_k=topk))
        return plain.weights, plain.indices.int()

    select_experts = sglang.run(
        SGLANG_TOPK,
        "select_experts",
        tmp_path,
        envs=SimpleNamespace(
            SGLANG_SIMULATE_UNIFORM_EXPERTS=SimpleNamespace(get=lambda: False),
            SGLANG_SIMULATE_ROUND_ROBIN_EXPERTS=SimpleNamespace(get=lambda: False),
        ),
        expert_location_dispatch=SimpleNamespace(
            transform_select_experts_inputs=lambda router_logits, correction_bias, info: (
                router_logits,
                correction_bias,
            )
        ),
        has_per_rank_fused_shared_slots=lambda slots: False,
        fused_topk=fused_topk,
        _use_aiter=False,
        _is_cpu=True,
        _SGLANG_EXPERIMENTAL_LORA_OPTI=False,
        _post_process_topk_ids=lambda topk_ids, topk_weights, **_: (topk_ids, topk_weights, None),
        StandardTopKOutput=lambda weights, ids, logits: SimpleNamespace(
            topk_weights=weights, topk_ids=ids
        ),
    )
    (tmp_path / "sglang/srt/layers/moe/topk.py").write_text("")
    target: Any = importlib.import_module("sglang.srt.layers.moe.topk")
    target.TopK, target.select_experts = TopK, select_experts

    sglang_plugin.register()
    sglang_modules["hook_registry"].HookRegistry.apply_hooks()

    config = target.TopK(4, layer_id=11).config
    logits = torch.randn(3, 16, generator=torch.Generator().manual_seed(3))
    context = sglang_modules["forward_context"]
    topk_config = SimpleNamespace(
        **config,
        use_grouped_topk=False,
        topk_group=None,
        num_expert_group=None,
        renormalize=True,
        num_shared_topk_slots=0,
        correction_bias=None,
        torch_native=False,
        routed_scaling_factor=None,
        apply_routed_scaling_factor_on_output=False,
        scoring_func="softmax",
        runner_backend=None,
    )
    with context.forward_context(context.ForwardContext(None), forward_batch=Batch()):
        done = target.select_experts(
            hidden_states=torch.zeros(3, 8),
            router_logits=logits,
            topk_config=topk_config,
            layer_id=11,
        )
    plain = select(logits, Gate(top_k=4))
    (totals,) = sglang_plugin.totals()
    assert totals.steps == 1
    assert totals.plain_active_experts == len(plain.indices[:2].unique())
    if policy is None:
        assert torch.equal(done.topk_ids, plain.indices.int())
        assert totals.active_experts == totals.plain_active_experts
    else:
        assert (done.topk_weights[2] == 0).all()
        assert totals.active_experts < totals.plain_active_experts
